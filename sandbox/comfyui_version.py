"""The host version that the sandbox imitates; the local part says that it is not the real one."""

__version__ = "0.33.0+sandbox"
