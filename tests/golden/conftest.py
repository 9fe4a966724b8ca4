"""Generated projects' own tests are run from inside each project, never from here."""

collect_ignore_glob = ["*"]
