/* SPDX-License-Identifier: Apache-2.0 */

/*
 * With --all, a folder that is searched earlier wins where two have a socket of the same name: it is the
 * one that --gpu would find. A socket nobody listens at is somebody's leftover, and no error.
 */

#include "fleet.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/parse.h"
#include "text.h"

#define SUFFIX ".ctl"
#define GPUS_MAX 256

/* ---- Finding ---- */

/* The N of ".../gpuN.sock.ctl". */
static bool read_number(const char *path, uint64_t *ret)
{
    const char *name = strrchr(path, '/') + 1;
    char digits[24];
    size_t n = strspn(name + 3, "0123456789");

    if (n == 0 || n >= sizeof(digits) || strcmp(name + 3 + n, ".sock" SUFFIX) != 0)
        return false;
    memcpy(digits, name + 3, n);
    digits[n] = '\0';
    return parse_u64(digits, ret) == 0 && *ret < GPUS_MAX;
}

/* Sockets by number; each is the caller's. */
static int search(const char *folder, const char *subfolder, char *paths[static GPUS_MAX])
{
    char pattern[PATH_MAX];
    uint64_t number;
    glob_t found;

    if (!folder || folder[0] != '/' ||
        snprintf(pattern, sizeof(pattern), "%.*s%s/gpu*.sock" SUFFIX, (int)strcspn(folder, ":"), folder,
                 subfolder) >= (int)sizeof(pattern))
        return 0;
    if (glob(pattern, 0, NULL, &found) != 0)
        return 0;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *path = found.gl_pathv[i];

        if (!read_number(path, &number) || paths[number])
            continue;
        paths[number] = strndup(path, strlen(path) - strlen(SUFFIX));
        if (!paths[number]) {
            globfree(&found);
            return -ENOMEM;
        }
    }
    globfree(&found);
    return 0;
}

static int connect_all(char *const paths[static GPUS_MAX], struct fleet *fleet)
{
    for (unsigned i = 0; i < GPUS_MAX; i++) {
        const struct control_options options = {.socket = paths[i]};
        _cleanup_(control_freep) struct control *control = NULL;
        int r;

        if (!paths[i])
            continue;
        if (control_new(&control) < 0)
            return command_complain(STATUS_FAILED, "Out of memory");
        r = control_connect(control, &options);
        if (r == 0)
            fleet->controls[fleet->n++] = steal_pointer(control);
        else if (r != CONTROL_E_NO_DAEMON)
            fleet->status = command_fail(control, r);
    }
    return STATUS_DONE;
}

static int find_all(struct fleet *fleet)
{
    char *paths[GPUS_MAX] = {NULL};
    int status = STATUS_DONE;

    fleet->controls = calloc(GPUS_MAX, sizeof(*fleet->controls));
    if (!fleet->controls || search(getenv("RUNTIME_DIRECTORY"), "", paths) < 0 ||
        search("/run/kvcached", "", paths) < 0 || search(getenv("XDG_RUNTIME_DIR"), "/kvcached", paths) < 0)
        status = command_complain(STATUS_FAILED, "Out of memory");
    else
        status = connect_all(paths, fleet);
    for (unsigned i = 0; i < GPUS_MAX; i++)
        free(paths[i]);
    if (status == STATUS_DONE && fleet->n == 0)
        status = fleet->status
                     ?: command_complain(STATUS_NO_DAEMON,
                                         "No daemon is running: nobody listens in $RUNTIME_DIRECTORY, "
                                         "/run/kvcached or $XDG_RUNTIME_DIR/kvcached");
    return status;
}

int fleet_connect(const struct invocation *invocation, struct fleet *ret)
{
    _cleanup_(fleet_deinit) struct fleet fleet = {0};
    int status;

    if (invocation->options->given & OPTION_ALL) {
        status = find_all(&fleet);
    } else {
        fleet.controls = calloc(1, sizeof(*fleet.controls));
        if (!fleet.controls)
            return command_complain(STATUS_FAILED, "Out of memory");
        status = command_connect(invocation, &fleet.controls[0]);
        fleet.n = status == STATUS_DONE;
    }
    if (status != STATUS_DONE)
        return status;
    *ret = fleet;
    fleet = (struct fleet){0};
    return STATUS_DONE;
}

void fleet_deinit(struct fleet *fleet)
{
    for (size_t i = 0; i < fleet->n; i++)
        control_free(fleet->controls[i]);
    free(fleet->controls);
    *fleet = (struct fleet){0};
}

/* ---- Going through ---- */

struct json_origin fleet_origin(const struct control *control)
{
    return (struct json_origin){
        .gpu = control_welcome(control)->gpu_index,
        .operations = control_knows_operations(control),
    };
}

static void print_heading(const struct control *control, bool first)
{
    const Kvcached__Welcome *welcome = control_welcome(control);
    char uuid[TEXT_MAX];

    printf("%sGPU %" PRIu32 ", %s:\n", first ? "" : "\n", welcome->gpu_index,
           text_clean(uuid, welcome->gpu_uuid));
}

int fleet_each(const struct invocation *invocation, bool headings,
               int (*run)(const struct invocation *invocation, struct control *control, void *userdata),
               void *userdata)
{
    _cleanup_(fleet_deinit) struct fleet fleet = {0};
    int status;

    status = fleet_connect(invocation, &fleet);
    if (status)
        return status;
    status = fleet.status;
    for (size_t i = 0; i < fleet.n; i++) {
        int one;

        if (headings && invocation->options->given & OPTION_ALL)
            print_heading(fleet.controls[i], i == 0);
        one = run(invocation, fleet.controls[i], userdata);
        status = one > status ? one : status;
    }
    return status;
}
