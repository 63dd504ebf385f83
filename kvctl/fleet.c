/* SPDX-License-Identifier: Apache-2.0 */

/*
 * With --all, of sockets of the same name the first that somebody listens at wins, in the order of the
 * folders: it is the one that --gpu would find. The others are somebody's leftovers, and no error.
 */

#include "fleet.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "text.h"

#define SUFFIX ".ctl"
#define GPUS_MAX 256

/* Where a GPU's daemon may listen, in the order in which that is tried. NULL: not there. */
struct candidates {
    char *sockets[3];
};

static void member_deinit(struct fleet_member *member)
{
    free(member->socket);
    control_free(member->control);
    *member = (struct fleet_member){0};
}

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

/* Candidates by number, of one place; each is the caller's. */
static int search(const char *folder, const char *subfolder, unsigned place,
                  struct candidates candidates[static GPUS_MAX])
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
        char **socket;

        if (!read_number(path, &number))
            continue;
        socket = &candidates[number].sockets[place];
        if (*socket)
            continue; /* "gpu00" is the same number */
        *socket = strndup(path, strlen(path) - strlen(SUFFIX));
        if (!*socket) {
            globfree(&found);
            return -ENOMEM;
        }
    }
    globfree(&found);
    return 0;
}

/* The first that somebody listens at, if there is one. False: no memory. */
static bool begin_one(unsigned gpu, struct candidates *candidates, int timeout_ms, struct fleet *fleet)
{
    struct fleet_member *member = &fleet->members[fleet->n];
    bool has_memory = true;

    for (size_t i = 0; i < ARRAY_SIZE(candidates->sockets) && has_memory; i++) {
        if (!candidates->sockets[i])
            continue;
        *member = (struct fleet_member){.gpu = gpu, .socket = steal_pointer(candidates->sockets[i])};
        fleet_member_begin(member, timeout_ms);
        has_memory = member->control;
        if (has_memory && member->r != CONTROL_E_NO_DAEMON) {
            fleet->n++;
            return true;
        }
        member_deinit(member);
    }
    return has_memory;
}

static bool find_all(int timeout_ms, struct fleet *fleet)
{
    struct candidates candidates[GPUS_MAX] = {0};
    bool ok;

    fleet->members = calloc(GPUS_MAX, sizeof(*fleet->members));
    ok = fleet->members && search(getenv("RUNTIME_DIRECTORY"), "", 0, candidates) == 0 &&
         search("/run/kvcached", "", 1, candidates) == 0 &&
         search(getenv("XDG_RUNTIME_DIR"), "/kvcached", 2, candidates) == 0;
    for (unsigned i = 0; ok && i < GPUS_MAX; i++)
        ok = begin_one(i, &candidates[i], timeout_ms, fleet);
    for (unsigned i = 0; i < GPUS_MAX; i++)
        for (size_t k = 0; k < ARRAY_SIZE(candidates[i].sockets); k++)
            free(candidates[i].sockets[k]);
    return ok;
}

/* The one that the options name. */
static int find_one(const struct invocation *invocation, int timeout_ms, struct fleet *fleet)
{
    struct fleet_member *member = calloc(1, sizeof(*member));
    const char *path;
    int status;

    if (!member)
        return command_complain(STATUS_FAILED, "Out of memory");
    fleet->members = member;
    fleet->n = 1;
    status = command_connect(invocation, &member->control);
    if (status)
        return status;
    path = control_path(member->control);
    member->socket = strndup(path, strlen(path) - strlen(SUFFIX));
    if (!member->socket)
        return command_complain(STATUS_FAILED, "Out of memory");
    member->gpu = control_welcome(member->control)->gpu_index;
    control_set_timeout(member->control, timeout_ms);
    return STATUS_DONE;
}

/* ---- Connecting ---- */

void fleet_member_begin(struct fleet_member *member, int timeout_ms)
{
    const struct control_options options = {.socket = member->socket, .timeout_ms = timeout_ms};
    struct control *control;

    if (control_new(&control) < 0)
        return; /* it stays as it was */
    control_free(member->control);
    member->control = control;
    member->r = control_connect_begin(control, &options) ?: CONTROL_E_PENDING;
}

void fleet_member_end(struct fleet_member *member)
{
    member->r = control_connect_end(member->control);
    if (member->r == 0)
        member->gpu = control_welcome(member->control)->gpu_index;
}

/* Until each has answered or used up its time. All are heard together: one that challenges us waits for the
 * answer no longer than for a handshake, whoever else is silent. */
static void await_all(struct fleet *fleet)
{
    struct pollfd pollfds[GPUS_MAX];
    int timeout_ms;
    nfds_t n;

    do {
        n = 0;
        timeout_ms = INT_MAX;
        for (size_t i = 0; i < fleet->n; i++) {
            struct fleet_member *member = &fleet->members[i];
            int patience_ms;

            if (member->r == CONTROL_E_PENDING)
                fleet_member_end(member);
            if (member->r != CONTROL_E_PENDING)
                continue;
            pollfds[n++] = (struct pollfd){.fd = control_fd(member->control),
                                           .events = control_poll_events(member->control)};
            patience_ms = control_patience_ms(member->control);
            timeout_ms = patience_ms < timeout_ms ? patience_ms : timeout_ms;
        }
        if (n > 0)
            (void)poll(pollfds, n, timeout_ms);
    } while (n > 0);
}

/* Complains where there is not one to talk to. */
static int check(const struct fleet *fleet)
{
    int status = STATUS_DONE;

    if (fleet->n == 0)
        return command_complain(
            STATUS_NO_DAEMON, "No daemon is running: nobody listens in $RUNTIME_DIRECTORY, /run/kvcached or "
                              "$XDG_RUNTIME_DIR/kvcached");
    for (size_t i = 0; i < fleet->n; i++)
        if (fleet->members[i].r == 0 || fleet->members[i].r == CONTROL_E_PENDING)
            return STATUS_DONE;
    for (size_t i = 0; i < fleet->n; i++) {
        int one = command_fail(fleet->members[i].control, fleet->members[i].r);

        status = one > status ? one : status;
    }
    return status;
}

static int find(const struct invocation *invocation, int timeout_ms, bool wait, struct fleet *ret)
{
    _cleanup_(fleet_deinit) struct fleet fleet = {0};
    int status;

    if (!(invocation->options->given & OPTION_ALL))
        status = find_one(invocation, timeout_ms, &fleet);
    else if (!find_all(timeout_ms, &fleet))
        status = command_complain(STATUS_FAILED, "Out of memory");
    else {
        if (wait)
            await_all(&fleet);
        status = check(&fleet);
    }
    if (status != STATUS_DONE)
        return status;
    *ret = fleet;
    fleet = (struct fleet){0};
    return STATUS_DONE;
}

int fleet_connect(const struct invocation *invocation, int timeout_ms, struct fleet *ret)
{
    return find(invocation, timeout_ms, true, ret);
}

int fleet_begin(const struct invocation *invocation, int timeout_ms, struct fleet *ret)
{
    return find(invocation, timeout_ms, false, ret);
}

void fleet_deinit(struct fleet *fleet)
{
    for (size_t i = 0; i < fleet->n; i++)
        member_deinit(&fleet->members[i]);
    free(fleet->members);
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
    bool is_first = true;
    int status;

    status = fleet_connect(invocation, 0, &fleet);
    if (status)
        return status;
    for (size_t i = 0; i < fleet.n; i++) {
        struct fleet_member *member = &fleet.members[i];
        int one;

        if (member->r) {
            one = command_fail(member->control, member->r);
        } else {
            if (headings && invocation->options->given & OPTION_ALL)
                print_heading(member->control, is_first);
            one = run(invocation, member->control, userdata);
            is_first = false;
        }
        status = one > status ? one : status;
    }
    return status;
}

int fleet_report(const struct invocation *invocation, bool headings,
                 int (*run)(const struct invocation *invocation, struct control *control, void *array))
{
    bool json = invocation->options->given & OPTION_JSON;
    cJSON *array = json ? cJSON_CreateArray() : NULL;
    int status;

    if (json && !array)
        return command_complain(STATUS_FAILED, "Out of memory");
    status = fleet_each(invocation, headings && !json, run, array);
    if (status == STATUS_DONE && json)
        return command_print_json(array);
    cJSON_Delete(array);
    return status;
}
