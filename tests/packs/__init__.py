"""A package, so that what its tests share, a server above all, ends with the last of them (`scope="package"`)."""
