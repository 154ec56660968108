"""TFDS builders of urban sound tagging data sets, free of TensorFlow.

Importing this package registers them, so that `tfds.builder('sonyc_ust/v1')`
or `tfds.builder('urban_scenes/procedural')` find them.
"""

from tfds_dcase import folder as folder
from tfds_dcase import sonyc_ust as sonyc_ust
from tfds_dcase import urban_scenes as urban_scenes
