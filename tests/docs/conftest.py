"""Projects that pages begin with are run by their pages."""

collect_ignore = ["projects"]
