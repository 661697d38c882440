/* Runs the direction kernel on what stands in a file and writes what comes of it, for processors other than this one's.
 *
 * Input: 8 int64 (distribution, stored, tensor, elements, directions, sums, paired, stepped), then float32 quantiles[256],
 * uint64 seeds, int64 stops, uint64 roundings, float32 coefficients, and the weights. Output: plus and minus, or the
 * stepped weights.
 */
#include "../../device_runtime/directions/kernel.c"

#include <stdio.h>
#include <stdlib.h>

static void *take(size_t size) {
    void *data = aligned_alloc(64, (size + 127) / 64 * 64);
    if (!data || fread(data, 1, size, stdin) != size) exit(1);
    return data;
}

int main(void) {
    int64_t *given = take(8 * 8);
    size_t elements = (size_t)given[3], width = given[1] == FLOAT32 ? 4 : 2;
    Sums sums = {.distribution = (int32_t)given[0], .paired = (int32_t)given[6], .sums = given[5]};
    sums.quantiles = take(256 * 4);
    sums.seeds = take((size_t)given[4] * 8);
    sums.stops = take((size_t)given[5] * 8);
    sums.roundings = take((size_t)given[5] * 8);
    sums.coefficients = take((size_t)given[4] * 4);
    void *weights = take(elements * width);
    Task task = {.weights = weights, .size = given[3], .tensor = (uint64_t)given[2], .stored = (int32_t)given[1]};
    if (given[7] && width == 2) task.stepped = weights;
    else if (given[7]) task.plus = weights;
    else {
        task.plus = aligned_alloc(64, elements * 4 / 64 * 64 + 64);
        if (given[6]) task.minus = aligned_alloc(64, elements * 4 / 64 * 64 + 64);
    }
    fedspzo_add_directions_1(&sums, &task, 1, 0, 1);
    if (given[7]) fwrite(weights, width, elements, stdout);
    else fwrite(task.plus, 4, elements, stdout);
    if (task.minus) fwrite(task.minus, 4, elements, stdout);
    return 0;
}
