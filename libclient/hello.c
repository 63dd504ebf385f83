/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the daemon says here is believed for as long as the connection lasts, and the arithmetic of regions
 * relies on it; so it is checked once, as if it came from a stranger.
 */

#include "hello.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"

#define PROGRAM_MAX 64
#define FEATURES (KVCACHED__FEATURE__FEATURE_LEASES | KVCACHED__FEATURE__FEATURE_ORDERS)
#define RESERVATIONS ((uint64_t)KVCACHED__FEATURE__FEATURE_RESERVATIONS)
#define TOO_OLD "This kvcachedd is too old for "

struct hello {
    struct request request;
    uint64_t offered; /* features */
    bool challenged;
    bool truncated;
    struct welcome welcome;
    const struct status_page *status;
    struct lease_line *leases;
};

static int answer_challenge(struct hello *hello, const Kvcached__Challenge *challenge)
{
    Kvcached__ChallengeReply reply = KVCACHED__CHALLENGE_REPLY__INIT;

    if (hello->challenged)
        return request_violated(&hello->request, "kvcachedd asked for a second proof of identity");
    hello->challenged = true;
    reply.nonce = challenge->nonce;
    conn_tell(hello->request.conn, MESSAGE_CHALLENGE_REPLY, hello->request.id, &reply.base);
    return REQUEST_MORE;
}

static bool classes_are_good(const Kvcached__Welcome *w)
{
    if (w->n_class_bytes < 1 || w->n_class_bytes > KVC_CLASSES_MAX)
        return false;
    for (size_t i = 0; i < w->n_class_bytes; i++)
        if (w->class_bytes[i] == 0 || w->class_bytes[i] % w->granularity_bytes != 0 ||
            (i > 0 && w->class_bytes[i] <= w->class_bytes[i - 1]))
            return false;
    return true;
}

static bool sizes_are_good(const Kvcached__Welcome *w)
{
    uint64_t granularity = w->granularity_bytes;

    return granularity >= 4096 && (granularity & (granularity - 1)) == 0 && granularity <= w->total_bytes &&
           w->total_bytes <= UINT64_MAX / 2 && classes_are_good(w);
}

static int read_welcome(struct hello *hello, const Kvcached__Welcome *w)
{
    struct welcome *welcome = &hello->welcome;
    struct kvc_device *device = &welcome->device;

    if (w->features & ~hello->offered)
        return request_violated(&hello->request, "kvcachedd chose features that were not offered");
    if (w->version != FRAME_VERSION)
        return request_violated(&hello->request, "kvcachedd chose protocol version %u, which was not offered",
                                w->version);
    if (!sizes_are_good(w) || strlen(w->gpu_uuid) >= sizeof(device->uuid) ||
        strlen(w->emulated_folder) >= sizeof(welcome->emulated_folder))
        return request_violated(&hello->request, "kvcachedd describes a GPU that cannot be");
    snprintf(device->uuid, sizeof(device->uuid), "%s", w->gpu_uuid);
    snprintf(welcome->emulated_folder, sizeof(welcome->emulated_folder), "%s", w->emulated_folder);
    device->total_bytes = w->total_bytes;
    device->granularity_bytes = w->granularity_bytes;
    device->n_classes = (uint32_t)w->n_class_bytes;
    memcpy(device->class_bytes, w->class_bytes, w->n_class_bytes * sizeof(w->class_bytes[0]));
    device->emulated = w->emulated_folder[0] != 0;
    welcome->gpu_index = w->gpu_index;
    welcome->features = w->features;
    return 0;
}

static int map_pages(struct hello *hello, const struct fdset *fds)
{
    bool leases = hello->welcome.features & KVCACHED__FEATURE__FEATURE_LEASES;

    if (fds->n != (leases ? 2u : 1u))
        return request_violated(&hello->request, "kvcachedd sent %u descriptors with Welcome", fds->n);
    if (status_page_map(fdset_borrow(fds, 0), &hello->status) != 0)
        return request_violated(&hello->request, "kvcachedd's status page is no such thing");
    if (leases && lease_file_map(fdset_borrow(fds, 1), &hello->leases) != 0)
        return request_violated(&hello->request, "kvcachedd's lease file is no such thing");
    return 0;
}

static int accept_welcome(struct hello *hello, const Kvcached__Welcome *w, struct fdset *fds, bool truncated)
{
    int r;

    r = read_welcome(hello, w);
    if (r < 0)
        return r;
    hello->truncated = truncated;
    if (truncated)
        return 0;
    return map_pages(hello, fds);
}

static int hello_receive(struct request *request, const struct message *message, struct fdset *fds,
                         bool truncated)
{
    struct hello *hello = container_of(request, struct hello, request);

    if (message->type == MESSAGE_CHALLENGE)
        return answer_challenge(hello, (const Kvcached__Challenge *)message->body);
    if (message->type == MESSAGE_WELCOME)
        return accept_welcome(hello, (const Kvcached__Welcome *)message->body, fds, truncated);
    return request_violated(request, "kvcachedd answered Hello with %s", codec_type_name(message->type));
}

static void hello_free(struct hello *hello)
{
    status_page_unmap(hello->status);
    lease_file_unmap(hello->leases);
    free(hello);
}

static void hello_finish(struct request *request)
{
    hello_free(container_of(request, struct hello, request));
}

static Kvcached__Role role_of(const struct settings *settings)
{
    switch (settings->role) {
    case KVC_ROLE_WORKER:
        return KVCACHED__ROLE__ROLE_WORKER;
    case KVC_ROLE_SCHEDULER:
        return KVCACHED__ROLE__ROLE_SCHEDULER;
    case KVC_ROLE_CONTROLLER:
        return KVCACHED__ROLE__ROLE_CONTROLLER;
    default:
        return KVCACHED__ROLE__ROLE_ENGINE;
    }
}

static int ask(struct kvc_client *client, const struct settings *settings, struct hello *hello)
{
    Kvcached__Hello body = KVCACHED__HELLO__INIT;
    char program[PROGRAM_MAX + 1], instance[INSTANCE_NAME_MAX + 1], uuid[CUDA_UUID_MAX];

    snprintf(program, sizeof(program), "%s", program_invocation_short_name);
    snprintf(instance, sizeof(instance), "%s", settings->instance);
    snprintf(uuid, sizeof(uuid), "%s", settings->gpu_uuid ? settings->gpu_uuid : "");
    body.min_version = FRAME_VERSION;
    body.max_version = FRAME_VERSION;
    body.features = hello->offered;
    body.role = role_of(settings);
    body.instance = instance;
    body.gpu_uuid = uuid;
    body.limit_ppm = settings->limit_ppm;
    body.program = program;
    return conn_ask(client->conn, &hello->request, MESSAGE_HELLO, &body.base);
}

static int judge(const struct hello *hello, const struct settings *settings)
{
    if (hello->truncated)
        return error_set(KVC_E_NOFILE, "No descriptor is left for kvcachedd's status page");
    if (settings->has_gpu_index && settings->gpu_index != hello->welcome.gpu_index)
        return error_set(KVC_E_REFUSED, "The kvcachedd at this socket serves GPU %u, not %u",
                         hello->welcome.gpu_index, settings->gpu_index);
    if (settings->role == KVC_ROLE_SCHEDULER &&
        !(hello->welcome.features & KVCACHED__FEATURE__FEATURE_ORDERS))
        return error_set(KVC_E_VERSION, TOO_OLD "schedulers in a process of their own");
    if (settings->role == KVC_ROLE_CONTROLLER && !(hello->welcome.features & RESERVATIONS))
        return error_set(KVC_E_VERSION, TOO_OLD "controllers");
    return 0;
}

int hello_exchange(struct kvc_client *client, const struct settings *settings, struct welcome *ret)
{
    struct hello *hello = calloc(1, sizeof(*hello));
    int r;

    if (!hello)
        return error_nomem();
    request_init(&hello->request, hello_receive, hello_finish);
    hello->offered = settings->role == KVC_ROLE_CONTROLLER ? RESERVATIONS : FEATURES;
    r = ask(client, settings, hello);
    if (r < 0) {
        hello_free(hello);
        return r;
    }
    r = conn_wait(client->conn, &hello->request);
    if (!hello->request.done)
        return r;
    /* It doesn't know the role. */
    if (r == KVC_E_INVALID && settings->role == KVC_ROLE_CONTROLLER)
        r = error_set(KVC_E_VERSION, TOO_OLD "controllers");
    if (r == 0)
        r = judge(hello, settings);
    if (r == 0) {
        *ret = hello->welcome;
        client->status = steal_pointer(hello->status);
        client->leases = steal_pointer(hello->leases);
        client->features = hello->welcome.features;
    }
    hello_free(hello);
    return r;
}
