"""The command line: `sealface …`. Each command has a module; services are imported only by `serve`."""
