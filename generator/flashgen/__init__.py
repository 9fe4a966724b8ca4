"""flashgen: one YAML file becomes a serving project that its owner commits and runs."""

__version__ = "0.1.0"
