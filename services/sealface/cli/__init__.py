"""The command line: `sealface …`. Each command has a module; services are imported only by `serve`."""

import os

# gRPC's own lines on standard error are for its developers, and neither one line nor JSON; read when it is imported
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
