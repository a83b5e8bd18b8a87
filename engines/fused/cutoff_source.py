"""C++ of the functions that fade a pair out: those of `painn_deploy.export.model.cutoffs`, with their slopes."""

__all__ = ["CUTOFF"]

CUTOFF = r"""
// Of a distance below the cutoff the function and its slope. CUTOFF_KIND is the function's place among the names there.
// Below LEAST_EXPONENT, exp(-1/x) is 0 in float32.
DEVICE void cutoff(float distance, float* value, float* slope)
{
#if CUTOFF_KIND == 0
    float angle = distance * CUTOFF_FREQUENCY;
    *value = 0.5f * (cosf(angle) + 1.0f);
    *slope = -0.5f * CUTOFF_FREQUENCY * sinf(angle);
#elif CUTOFF_KIND == 1
    float x = distance * CUTOFF_INVERSE, rest = 1.0f - x * x;
    bool ends = !(rest > LEAST_EXPONENT);
    *value = ends ? 0.0f : expf(1.0f - 1.0f / rest);
    *slope = ends ? 0.0f : -2.0f * x * CUTOFF_INVERSE * *value / (rest * rest);
#elif CUTOFF_KIND == 2
    float x = (distance - SWITCH_ON) * SWITCH_INVERSE, y = 1.0f - x;
    float rising = x > LEAST_EXPONENT ? expf(-1.0f / x) : 0.0f, falling = y > LEAST_EXPONENT ? expf(-1.0f / y) : 0.0f;
    float sum = rising + falling, by_rising = rising > 0.0f ? rising / (x * x) : 0.0f;
    float by_falling = falling > 0.0f ? falling / (y * y) : 0.0f;
    *value = falling / sum;
    *slope = -SWITCH_INVERSE * (by_falling * rising + falling * by_rising) / (sum * sum);
#elif CUTOFF_KIND == 3
    float x = distance * CUTOFF_INVERSE, rest = 1.0f - x, power = 1.0f;
    float total = 0.5f * (CUTOFF_POWER * (CUTOFF_POWER + 1));
    for (int k = CUTOFF_POWER - 2; k >= 0; --k) {
        total = total * x + 0.5f * ((k + 1) * (k + 2));
        power *= x;
    }
    *value = rest * rest * rest * total;
    *slope = -0.5f * (CUTOFF_POWER * (CUTOFF_POWER + 1) * (CUTOFF_POWER + 2)) * CUTOFF_INVERSE * power * rest * rest;
#else
#error "this cutoff function is not written here"
#endif
}
"""
