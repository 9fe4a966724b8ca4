"""The stages of a build. A stage never imports another stage."""
