"""C++ of what fades a pair out, as `painn_deploy.export.model.cutoffs` has it, and of what repels nuclei."""

__all__ = ["FADING"]

FADING = r"""
// What a function that fades is made of, 1/Å but for `start`, Å: pi over its end, 1 over its end, where it begins to
// fall, and 1 over the length of its fall.
struct Fade {
    float frequency, inverse, start, fall;
};

// Of a distance below its end the function and its slope. KIND is its place among the names there, or -1 for one that
// fades nothing. Below LEAST_EXPONENT, exp(-1/x) is 0 in float32.
template <int KIND, int POWER>
DEVICE void faded(float distance, Fade fade, float* value, float* slope)
{
    static_assert(KIND >= -1 && KIND <= 3, "other functions are not written here");
    if (KIND == -1) {
        *value = 1.0f;
        *slope = 0.0f;
    } else if (KIND == 0) {
        float angle = distance * fade.frequency;
        *value = 0.5f * (cosf(angle) + 1.0f);
        *slope = -0.5f * fade.frequency * sinf(angle);
    } else if (KIND == 1) {
        float x = distance * fade.inverse, rest = 1.0f - x * x;
        bool ends = !(rest > LEAST_EXPONENT);
        *value = ends ? 0.0f : expf(1.0f - 1.0f / rest);
        *slope = ends ? 0.0f : -2.0f * x * fade.inverse * *value / (rest * rest);
    } else if (KIND == 2) {
        float x = (distance - fade.start) * fade.fall, y = 1.0f - x;
        float rising = x > LEAST_EXPONENT ? expf(-1.0f / x) : 0.0f;
        float falling = y > LEAST_EXPONENT ? expf(-1.0f / y) : 0.0f, sum = rising + falling;
        float by_rising = rising > 0.0f ? rising / (x * x) : 0.0f;
        float by_falling = falling > 0.0f ? falling / (y * y) : 0.0f;
        *value = falling / sum;
        *slope = -fade.fall * (by_falling * rising + falling * by_rising) / (sum * sum);
    } else {
        float x = distance * fade.inverse, rest = 1.0f - x, power = 1.0f;
        float total = 0.5f * (POWER * (POWER + 1));
        for (int k = POWER - 2; k >= 0; --k) {
            total = total * x + 0.5f * ((k + 1) * (k + 2));
            power *= x;
        }
        *value = rest * rest * rest * total;
        *slope = -0.5f * (POWER * (POWER + 1) * (POWER + 2)) * fade.inverse * power * rest * rest;
    }
}

DEVICE void cutoff(float distance, float* value, float* slope)
{
    const Fade fade = {CUTOFF_FREQUENCY, CUTOFF_INVERSE, CUTOFF_START, CUTOFF_FALL};
    faded<CUTOFF_KIND, CUTOFF_POWER>(distance, fade, value, slope);
}

#if REPULSION
// Of two nuclei the half of their repulsion that is each one's, eV, and its slope: see
// `painn_deploy.export.model.repulsion`. It may end before the student does.
DEVICE void repulsion(float distance, int here, int there, const float* weights, float* value, float* slope)
{
    *value = *slope = 0.0f;
    if (distance > REPULSION_END) return;
    const float *terms = weights + REPULSION_NUMBERS, *radii = weights + REPULSION_RADII;
    float inverse = 1.0f / distance, screening = radii[here] + radii[there], sum = 0.0f, by_distance = 0.0f, f, by_f;
    for (int k = 0; k < REPULSION; ++k) {
        float steep = terms[2 * k + 1] * screening, term = terms[2 * k] * expf(-steep * distance);
        sum += term;
        by_distance -= steep * term;
    }
    const Fade fade = {REPULSION_FREQUENCY, REPULSION_INVERSE, REPULSION_START, REPULSION_FALL};
    faded<REPULSION_KIND, 0>(distance, fade, &f, &by_f);
    float charges = (float)here * (float)there * inverse;
    *value = charges * sum * f;
    *slope = charges * (by_distance * f + sum * (by_f - f * inverse));
}
#endif
"""
