"""Layers: one public class a file."""
