"""The SONYC-UST taxonomy: 8 coarse classes, 23 fine tags, 6 "X" tags.

Source: `dcase-ust-taxonomy.yaml` of the DCASE 2019 Task 5 release (md5
6c1cca1c4c383a6ebb0cb71cb74fe3a9, CC BY 4.0). An X tag marks a sound of its
coarse class that is none of the fine tags or could not be identified.
"""

import numpy as np

COARSE = (
  '1_engine',
  '2_machinery-impact',
  '3_non-machinery-impact',
  '4_powered-saw',
  '5_alert-signal',
  '6_music',
  '7_human-voice',
  '8_dog',
)

# Every fine column of the annotation files, X included, in file order. [Q]
FINE_COLUMNS = (
  '1-1_small-sounding-engine',
  '1-2_medium-sounding-engine',
  '1-3_large-sounding-engine',
  '1-X_engine-of-uncertain-size',
  '2-1_rock-drill',
  '2-2_jackhammer',
  '2-3_hoe-ram',
  '2-4_pile-driver',
  '2-X_other-unknown-impact-machinery',
  '3-1_non-machinery-impact',
  '4-1_chainsaw',
  '4-2_small-medium-rotating-saw',
  '4-3_large-rotating-saw',
  '4-X_other-unknown-powered-saw',
  '5-1_car-horn',
  '5-2_car-alarm',
  '5-3_siren',
  '5-4_reverse-beeper',
  '5-X_other-unknown-alert-signal',
  '6-1_stationary-music',
  '6-2_mobile-music',
  '6-3_ice-cream-truck',
  '6-X_music-from-uncertain-source',
  '7-1_person-or-small-group-talking',
  '7-2_person-or-small-group-shouting',
  '7-3_large-crowd',
  '7-4_amplified-speech',
  '7-X_other-unknown-human-voice',
  '8-1_dog-barking-whining',
)

IS_UNKNOWN = np.array([name[2] == 'X' for name in FINE_COLUMNS])  # [29] bool
COARSE_OF_COLUMN = np.array([int(name[0]) - 1 for name in FINE_COLUMNS])  # [29]

FINE = tuple(n for n, x in zip(FINE_COLUMNS, IS_UNKNOWN, strict=True) if not x)
UNKNOWN = tuple(n for n, x in zip(FINE_COLUMNS, IS_UNKNOWN, strict=True) if x)
COARSE_OF_FINE = COARSE_OF_COLUMN[~IS_UNKNOWN]  # [23]
COARSE_OF_UNKNOWN = COARSE_OF_COLUMN[IS_UNKNOWN]  # [6]
