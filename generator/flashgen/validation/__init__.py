"""The rules of the spec, one module per subject; `stages.validate` calls them in order."""
