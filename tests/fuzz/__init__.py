"""Generated requests against the real server process: no 500, and nothing comes back changed."""
