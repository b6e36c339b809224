"""Every surface of what was measured: terminal, JSON, JUnit, GitHub, Markdown and the page."""
