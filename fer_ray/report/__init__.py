"""Numbers to pictures and HTML pages."""
