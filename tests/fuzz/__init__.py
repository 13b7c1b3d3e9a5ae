"""Every wire form that the key service accepts, fed with bytes: by hypothesis, by atheris in `python -m tests.fuzz`."""
