"""The command line. Thin: what a verb does is done by the layers below."""
