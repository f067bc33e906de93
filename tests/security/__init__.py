"""Attacks against the real server process: nobody in, nothing changed, server alive."""
