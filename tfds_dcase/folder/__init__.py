"""A user's own labelled recordings."""

from tfds_dcase.folder.folder import Folder, make_builder

__all__ = ['Folder', 'make_builder']
