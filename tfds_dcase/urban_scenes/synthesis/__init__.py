"""Synthesised sources, one function for each tag of the SONYC taxonomy.

Each is `source(rng, num_samples) -> float32 [S]` at 16 kHz and an arbitrary
level. Pitch, rate and timbre are drawn anew for every source; what repeats in
the street (barks, blows, beeps, alarms) truly repeats within one.
"""

from tfds_dcase.urban_scenes.synthesis import machines, signals, voices

SOURCES = {
  '1-1_small-sounding-engine': machines.small_engine,
  '1-2_medium-sounding-engine': machines.medium_engine,
  '1-3_large-sounding-engine': machines.large_engine,
  '2-1_rock-drill': machines.rock_drill,
  '2-2_jackhammer': machines.jackhammer,
  '2-3_hoe-ram': machines.hoe_ram,
  '2-4_pile-driver': machines.pile_driver,
  '3-1_non-machinery-impact': machines.struck_object,
  '4-1_chainsaw': machines.chainsaw,
  '4-2_small-medium-rotating-saw': machines.small_saw,
  '4-3_large-rotating-saw': machines.large_saw,
  '5-1_car-horn': signals.car_horn,
  '5-2_car-alarm': signals.car_alarm,
  '5-3_siren': signals.siren,
  '5-4_reverse-beeper': signals.reverse_beeper,
  '5-X_other-unknown-alert-signal': signals.other_alert,
  '6-1_stationary-music': signals.stationary_music,
  '6-2_mobile-music': signals.mobile_music,
  '6-3_ice-cream-truck': signals.ice_cream_truck,
  '7-1_person-or-small-group-talking': voices.talking,
  '7-2_person-or-small-group-shouting': voices.shouting,
  '7-3_large-crowd': voices.crowd,
  '7-4_amplified-speech': voices.amplified_speech,
  '8-1_dog-barking-whining': voices.dog,
}
