"""The container stack of ``Mem0Server``: source, image, containers, relay and their keeper.

The only part of the package that knows of docker.
"""
