/* Rotary positions of a model (Su et al. 2021). */
#ifndef SQUINT_PARAMS_ROTARY_H
#define SQUINT_PARAMS_ROTARY_H

#include "config/model_config.h"

/* Radians a position by which pair `pair` of a head, 0 … D/2 − 1, turns: theta^{-2·pair/D}, stretched as the config says. */
double rotary_frequency(const struct model_config *config, int64_t pair);

#endif
