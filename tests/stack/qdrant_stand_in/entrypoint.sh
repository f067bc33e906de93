#!/bin/sh
# The real image has a script of this name, which the stack's files start.
exec python3 /qdrant/server.py
