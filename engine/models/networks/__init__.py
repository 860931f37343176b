"""Architectures of networks, with the parameter names under which their weights were published."""
