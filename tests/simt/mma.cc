/* The sums of tensor-core instructions: what the lanes of a warp brought by value, so that no sanitizer need watch it,
 * and it may be quick. */
#include <simt_mma.h>

/* Lane l, g = l/4, t = l%4, brought of a [16,16] the pairs of columns (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8) and of
 * b [16,8] the pairs of rows (2t, g), (2t+8, g); it gets of a·b (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). */
#if defined(__x86_64__)
__attribute__((target_clones("default", "avx2"))) /* without fused multiply-add: the same bits */
#endif
void simt_combine_products(const char *slots, char *results) {
    float a[16][16], b[16][8], sums[16][8] = {};
    for (unsigned lane = 0; lane < 32; lane++) {
        simt_operands from;
        memcpy(&from, slots + lane * SIMT_SLOT, sizeof from);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned half = 0; half < 2; half++) {
            for (unsigned n = 0; n < 4; n++)
                a[g + 8 * (n % 2)][2 * t + 8 * (n / 2) + half] = __uint_as_float(from.a[n] >> 16 * half << 16);
            for (unsigned n = 0; n < 2; n++) b[2 * t + 8 * n + half][g] = __uint_as_float(from.b[n] >> 16 * half << 16);
        }
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned e = 0; e < 4; e++)
            memcpy(results + lane * SIMT_RESULT + 4 * e, &sums[lane / 4 + 8 * (e / 2)][2 * (lane % 4) + e % 2], 4);
}
