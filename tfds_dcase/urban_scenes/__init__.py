"""Urban scenes, synthesised or mixed from a folder of recordings."""

from tfds_dcase.urban_scenes.urban_scenes import UrbanScenes, make_builder

__all__ = ['UrbanScenes', 'make_builder']
