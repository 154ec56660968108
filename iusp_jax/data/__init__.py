"""Prepared data sets, their clips and the stored outputs of a teacher."""
