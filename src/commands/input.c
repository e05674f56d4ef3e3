/* See input.h. */
#include "commands/input.h"

#include "base/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum status input_open(const char *path, struct input *input) {
    if (path && strcmp(path, "-") != 0) {
        TRY(file_map_open(path, &input->map));
        input->text = input->map.data;
        input->length = input->map.bytes;
        return STATUS_OK;
    }
    size_t room = 0;
    for (;;) {
        if (room - input->length < 65536) {
            room = 2 * room + 131072;
            TRY(memory_grow(&input->read, room, 1, "standard input"));
        }
        ssize_t count = read(STDIN_FILENO, input->read + input->length, room - input->length);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return error_set(STATUS_IO, "standard input: reading: %s", strerror(errno));
        if (count == 0) break;
        input->length += (size_t)count;
    }
    input->text = input->read;
    return STATUS_OK;
}

void input_close(struct input *input) {
    file_map_close(&input->map);
    free(input->read);
}
