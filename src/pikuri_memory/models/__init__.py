"""What turns texts into vectors: the built-in embedder and the user's router."""
