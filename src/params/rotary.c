/* See rotary.h. */
#include "params/rotary.h"

#include <math.h>

/* Llama 3's stretching of low rotary frequencies (Grattafiori et al. 2024, "rope_scaling" of type llama3). */
static double stretch(const struct model_config *c, double frequency) {
    if (c->rope_factor <= 0) return frequency;
    double wavelength = 2 * M_PI / frequency, original = (double)c->rope_original_positions;
    double low = original / c->rope_low_factor, high = original / c->rope_high_factor;
    if (wavelength < high) return frequency;
    if (wavelength > low) return frequency / c->rope_factor;
    double smooth = (original / wavelength - c->rope_low_factor) / (c->rope_high_factor - c->rope_low_factor);
    return (1 - smooth) * frequency / c->rope_factor + smooth * frequency;
}

double rotary_frequency(const struct model_config *config, int64_t pair) {
    return stretch(config, pow(config->rope_theta, -2.0 * (double)pair / (double)config->head_width));
}
