"""Generated from `proto/` by `make proto`; every other file here is written by protoc."""
