"""Data only: compressed vocabularies, read by `projects.mgpstr.vocabularies`."""
