"""The embedded server: SQLite holds the memories, Qdrant Edge finds them."""
