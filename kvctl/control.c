/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The client's half of the control protocol. It owns the connection and the words for what went wrong with
 * it; what the answers mean, and how they are shown, is for its callers.
 *
 * It promises that nothing is asked of a stranger: before the first byte is sent, the kernel has said under
 * which user the listener runs.
 */

#include "control.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "base/arith.h"
#include "wire/link.h"

#define SUFFIX ".ctl"
#define SERVICE_USER "kvcached"
#define QUEUE_MAX 4
#define PLACES_MAX 3

struct control {
    struct link *link;
    struct message welcome;
    struct sockaddr_un address;
    int timeout_ms;
    uint64_t deadline_ms; /* of what is awaited; UINT64_MAX: none */
    uint32_t last_request;
    bool challenged;
    Kvcached__Error refusal;
    char reason[512];
};

int control_new(struct control **ret)
{
    struct control *control = calloc(1, sizeof(*control));

    if (!control)
        return -ENOMEM;
    *ret = control;
    return 0;
}

struct control *control_free(struct control *control)
{
    if (!control)
        return NULL;
    link_free(control->link);
    if (control->welcome.body)
        message_deinit(&control->welcome);
    free(control);
    return NULL;
}

void control_set_timeout(struct control *control, int timeout_ms)
{
    control->timeout_ms = timeout_ms > 0 ? timeout_ms : CONTROL_TIMEOUT_MS;
}

const char *control_reason(const struct control *control)
{
    return control->reason;
}

Kvcached__Error control_refusal(const struct control *control)
{
    return control->refusal;
}

const char *control_path(const struct control *control)
{
    return control->address.sun_path;
}

const Kvcached__Welcome *control_welcome(const struct control *control)
{
    return (const Kvcached__Welcome *)control->welcome.body;
}

/* Notes the reason and passes the verdict on. */
__attribute__((format(printf, 3, 4))) static int fail(struct control *control, int verdict,
                                                      const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(control->reason, sizeof(control->reason), format, args);
    va_end(args);
    return verdict;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / NSEC_PER_MSEC;
}

static int fail_link(struct control *control, int r)
{
    if (r == LINK_E_CLOSED)
        return fail(control, CONTROL_E_FAILED, "The daemon at %s closed the connection",
                    control->address.sun_path);
    if (r == LINK_E_VIOLATION)
        return fail(control, CONTROL_E_FAILED, "What answered at %s does not speak our protocol: %s",
                    control->address.sun_path, link_reason(control->link));
    return fail(control, r < 0 ? r : CONTROL_E_FAILED, "Talking to the daemon failed: %s",
                r < 0 ? strerror(-r) : "its socket takes no more");
}

/* Something that has come, or CONTROL_E_PENDING until the deadline. */
static int take_message(struct control *control, struct message *ret)
{
    int r = link_flush(control->link);

    /* A daemon that turned us away may have said why before it closed. */
    if (r == 0 || r == LINK_E_CLOSED)
        r = link_receive(control->link, ret, NULL);
    if (r == 0)
        return 0;
    if (r != LINK_E_EMPTY)
        return fail_link(control, r);
    if (now_ms() < control->deadline_ms)
        return CONTROL_E_PENDING;
    return fail(control, CONTROL_E_SILENT, "The daemon at %s has not answered for %g s",
                control->address.sun_path, control->timeout_ms / 1000.0);
}

static int take_refusal(struct control *control, const Kvcached__Refused *refused)
{
    control->refusal = refused->error;
    return fail(control, CONTROL_E_REFUSED, "%s",
                refused->reason[0] ? refused->reason : "The daemon refused without saying why");
}

/* The answer to the last request, whatever its type, or CONTROL_E_PENDING. */
static int take_answer(struct control *control, struct message *ret)
{
    uint32_t request = control->last_request;
    struct message message;
    int r;

    r = take_message(control, &message);
    if (r)
        return r;
    if (message.type == MESSAGE_REFUSED && (message.request == request || message.request == 0))
        r = take_refusal(control, (const Kvcached__Refused *)message.body);
    else if (message.request != request)
        r = fail(control, CONTROL_E_FAILED, "The daemon answered something that was not asked");
    if (r)
        message_deinit(&message);
    else
        *ret = message;
    return r;
}

/* Its answer is due in time. */
static int say(struct control *control, uint16_t type, const ProtobufCMessage *body)
{
    int r = link_send(control->link, type, control->last_request, body, NULL);

    control->deadline_ms = now_ms() + (uint64_t)control->timeout_ms;
    if (r == -EMSGSIZE)
        return fail(control, CONTROL_E_FAILED, "That is more than fits into one request");
    /* A daemon that has hung up may have left its reason in the socket. */
    return r == 0 || r == LINK_E_CLOSED ? 0 : fail_link(control, r);
}

static int begin(struct control *control, uint16_t type, const ProtobufCMessage *body)
{
    control->last_request++;
    return say(control, type, body);
}

static int check_type(struct control *control, struct message *answer, uint16_t type)
{
    int r;

    if (answer->type == type)
        return 0;
    r = fail(control, CONTROL_E_FAILED, "The daemon answered %s where %s was due",
             codec_type_name(answer->type), codec_type_name(type));
    message_deinit(answer);
    return r;
}

/* The answer, or CONTROL_E_PENDING. */
static int end(struct control *control, uint16_t answer_type, struct message *ret)
{
    struct message answer;
    int r;

    r = take_answer(control, &answer);
    if (r == 0)
        r = check_type(control, &answer, answer_type);
    if (r == 0)
        *ret = answer;
    return r;
}

/* ---- Waiting ---- */

int control_fd(const struct control *control)
{
    return link_fd(control->link);
}

short control_poll_events(const struct control *control)
{
    return (short)(POLLIN | (link_wants_write(control->link) ? POLLOUT : 0));
}

int control_patience_ms(const struct control *control)
{
    if (control->deadline_ms == UINT64_MAX)
        return -1;
    return (int)u64_min(u64_sub_floor(control->deadline_ms, now_ms()), INT_MAX);
}

/* Returns at the deadline at the latest; whether anything has come is for the next receive to find out. */
static int wait_ready(struct control *control)
{
    struct pollfd pollfd = {.fd = control_fd(control), .events = control_poll_events(control)};

    if (poll(&pollfd, 1, control_patience_ms(control)) < 0 && errno != EINTR)
        return fail(control, -errno, "Waiting for the daemon failed: %s", strerror(errno));
    return 0;
}

static int await(struct control *control, uint16_t answer_type, struct message *ret)
{
    int r;

    do {
        r = end(control, answer_type, ret);
    } while (r == CONTROL_E_PENDING && (r = wait_ready(control)) == 0);
    return r;
}

static int ask(struct control *control, uint16_t type, const ProtobufCMessage *body, uint16_t answer_type,
               struct message *ret)
{
    return begin(control, type, body) ?: await(control, answer_type, ret);
}

/* ---- Connecting ---- */

static bool is_trusted(uid_t uid)
{
    const struct passwd *service;

    if (uid == 0 || uid == geteuid())
        return true;
    service = getpwnam(SERVICE_USER);
    return service && service->pw_uid == uid;
}

static int check_listener(struct control *control, int fd)
{
    struct ucred credentials;
    socklen_t size = sizeof(credentials);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return fail(control, -errno, "The kernel doesn't say who listens at %s: %s",
                    control->address.sun_path, strerror(errno));
    if (!is_trusted(credentials.uid))
        return fail(control, CONTROL_E_NO_DAEMON,
                    "%s belongs to user %u, who is neither root, nor you, nor the user " SERVICE_USER,
                    control->address.sun_path, credentials.uid);
    return 0;
}

/* Nobody there is -ENOENT, so that a search can go on. */
static int fail_connect(struct control *control, int error)
{
    const char *path = control->address.sun_path;

    switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ECONNREFUSED:
        return fail(control, -ENOENT, "No daemon listens at %s", path);
    case ENOTSOCK:
    case EPROTOTYPE:
        return fail(control, CONTROL_E_NO_DAEMON, "%s is not the socket of a daemon", path);
    case EACCES:
    case EPERM:
        return fail(control, CONTROL_E_FAILED,
                    "You may not connect to %s: that is for root, the daemon's user and its group", path);
    case EAGAIN:
        return fail(control, CONTROL_E_FAILED, "The daemon at %s accepts no connection", path);
    default:
        return fail(control, -error, "Connecting to %s failed: %s", path, strerror(error));
    }
}

static int set_address(struct control *control, const char *socket_path)
{
    int n;

    control->address.sun_family = AF_UNIX;
    n = snprintf(control->address.sun_path, sizeof(control->address.sun_path), "%s" SUFFIX, socket_path);
    if (n < 0 || (size_t)n >= sizeof(control->address.sun_path))
        return fail(control, CONTROL_E_NO_DAEMON, "%s" SUFFIX " is longer than the path of a socket can be",
                    socket_path);
    return 0;
}

/* Leaves the connection in control->link. */
static int connect_to(struct control *control, const char *socket_path, int flags)
{
    struct timeval patience = {.tv_sec = control->timeout_ms / 1000,
                               .tv_usec = control->timeout_ms % 1000 * 1000};
    _cleanup_close_ int fd = -1;
    int r;

    r = set_address(control, socket_path);
    if (r)
        return r;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        return fail(control, -errno, "There is no socket to be had: %s", strerror(errno));
    /* A listener that never accepts would hold connect() for ever once its backlog is full. */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (const struct sockaddr *)&control->address, sizeof(control->address)) < 0)
        return fail_connect(control, errno);
    r = check_listener(control, fd);
    if (r)
        return r;
    r = link_new(fd, false, QUEUE_MAX, &control->link);
    if (r)
        return fail(control, r, "Talking to the daemon failed: %s", strerror(-r));
    steal_fd(&fd);
    return 0;
}

bool control_names_gpu(const char *gpu)
{
    size_t n_digits = strspn(gpu, "0123456789");

    if (n_digits > 0 && gpu[n_digits] == '\0')
        return true;
    if (strncmp(gpu, "GPU-", 4) != 0 && strncmp(gpu, "MIG-", 4) != 0)
        return false;
    return gpu[4] && gpu[4 + strspn(gpu + 4, "0123456789abcdefABCDEF-")] == '\0';
}

/* Daemons leave a link named by UUID beside the socket named by number. */
static bool place(char *paths[static PLACES_MAX], size_t *n, const char *folder, const char *subfolder,
                  const char *gpu)
{
    if (!folder || folder[0] != '/')
        return true;
    /* systemd separates several runtime directories by colons; the first is the daemon's. */
    if (asprintf(&paths[*n], "%.*s%s/%s%s.sock", (int)strcspn(folder, ":"), folder, subfolder,
                 gpu[0] <= '9' ? "gpu" : "", gpu) < 0)
        return false;
    (*n)++;
    return true;
}

static int connect_to_gpu(struct control *control, const char *gpu, int flags)
{
    char *paths[PLACES_MAX] = {NULL};
    size_t n = 0;
    bool ok;
    int r = -ENOENT;

    ok = place(paths, &n, getenv("RUNTIME_DIRECTORY"), "", gpu) &&
         place(paths, &n, "/run/kvcached", "", gpu) &&
         place(paths, &n, getenv("XDG_RUNTIME_DIR"), "/kvcached", gpu);
    if (!ok)
        r = fail(control, -ENOMEM, "Out of memory");
    for (size_t i = 0; ok && i < n && r == -ENOENT; i++)
        r = connect_to(control, paths[i], flags);
    for (size_t i = 0; i < n; i++)
        free(paths[i]);
    if (r != -ENOENT)
        return r;
    return fail(control, r,
                "No daemon for GPU %s is running: nobody listens in $RUNTIME_DIRECTORY, /run/kvcached or "
                "$XDG_RUNTIME_DIR/kvcached",
                gpu);
}

static int greet(struct control *control)
{
    Kvcached__Hello hello = KVCACHED__HELLO__INIT;

    hello.min_version = FRAME_VERSION;
    hello.max_version = FRAME_VERSION;
    hello.features = KVCACHED__FEATURE__FEATURE_OPERATIONS;
    hello.program = program_invocation_short_name;
    return begin(control, MESSAGE_HELLO, &hello.base);
}

static int answer_challenge(struct control *control, struct message *challenge)
{
    Kvcached__ChallengeReply reply = KVCACHED__CHALLENGE_REPLY__INIT;
    int r;

    reply.nonce = ((const Kvcached__Challenge *)challenge->body)->nonce;
    r = say(control, MESSAGE_CHALLENGE_REPLY, &reply.base);
    message_deinit(challenge);
    control->challenged = true;
    return r;
}

static int reach(struct control *control, const struct control_options *options, int flags)
{
    const char *socket_path = options->socket;
    int r;

    if (!socket_path && !options->gpu)
        socket_path = getenv("KVCACHED_SOCKET");
    control_set_timeout(control, options->timeout_ms);
    if (socket_path && *socket_path)
        r = connect_to(control, socket_path, flags);
    else
        r = connect_to_gpu(control, options->gpu ? options->gpu : "0", flags);
    if (r)
        return r == -ENOENT ? CONTROL_E_NO_DAEMON : r;
    return greet(control);
}

int control_connect_begin(struct control *control, const struct control_options *options)
{
    return reach(control, options, SOCK_NONBLOCK);
}

int control_connect_end(struct control *control)
{
    struct message answer;
    int r;

    r = take_answer(control, &answer);
    if (r == 0 && answer.type == MESSAGE_CHALLENGE && !control->challenged) {
        r = answer_challenge(control, &answer);
        if (r == 0)
            r = take_answer(control, &answer);
    }
    if (r == 0)
        r = check_type(control, &answer, MESSAGE_WELCOME);
    if (r == 0)
        control->welcome = answer;
    return r;
}

int control_connect_await(struct control *control)
{
    int r;

    do {
        r = control_connect_end(control);
    } while (r == CONTROL_E_PENDING && (r = wait_ready(control)) == 0);
    return r;
}

int control_connect(struct control *control, const struct control_options *options)
{
    return reach(control, options, 0) ?: control_connect_await(control);
}

/* ---- Requests ---- */

static int keep_page(struct control_listing *listing, struct message *page)
{
    const Kvcached__ListReply *reply = (const Kvcached__ListReply *)page->body;
    Kvcached__InstanceInfo **instances;
    struct message *pages;

    pages = reallocarray(listing->pages, listing->n_pages + 1, sizeof(*pages));
    if (!pages)
        return -ENOMEM;
    listing->pages = pages;
    instances = reallocarray(listing->instances, listing->n + reply->n_instances + 1, sizeof(*instances));
    if (!instances)
        return -ENOMEM;
    listing->instances = instances;
    for (size_t i = 0; i < reply->n_instances; i++)
        instances[listing->n++] = reply->instances[i];
    pages[listing->n_pages++] = *page;
    return 0;
}

static int list_begin(struct control *control, char *const *names, size_t n_names, uint64_t cursor)
{
    Kvcached__List list = KVCACHED__LIST__INIT;

    list.instances = (char **)names;
    list.n_instances = n_names;
    list.cursor = cursor;
    return begin(control, MESSAGE_LIST, &list.base);
}

int control_list_begin(struct control *control, char *const *names, size_t n_names)
{
    return list_begin(control, names, n_names, 0);
}

/* A page, and the request for the next one. */
int control_list_end(struct control *control, char *const *names, size_t n_names,
                     struct control_listing *listing)
{
    struct message page;
    uint64_t next;
    int r;

    r = end(control, MESSAGE_LIST_REPLY, &page);
    if (r)
        return r;
    next = ((const Kvcached__ListReply *)page.body)->next;
    r = keep_page(listing, &page);
    if (r) {
        message_deinit(&page);
        return fail(control, r, "Out of memory");
    }
    if (next == 0)
        return 0;
    return list_begin(control, names, n_names, next) ?: CONTROL_E_PENDING;
}

int control_list(struct control *control, char *const *names, size_t n_names, struct control_listing *ret)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    int r;

    r = control_list_begin(control, names, n_names);
    if (r)
        return r;
    do {
        r = control_list_end(control, names, n_names, &listing);
    } while (r == CONTROL_E_PENDING && (r = wait_ready(control)) == 0);
    if (r)
        return r;
    *ret = listing;
    listing = (struct control_listing){0};
    return 0;
}

void control_listing_deinit(struct control_listing *listing)
{
    for (size_t i = 0; i < listing->n_pages; i++)
        message_deinit(&listing->pages[i]);
    free(listing->pages);
    free(listing->instances);
    *listing = (struct control_listing){0};
}

int control_set_limit_bytes(struct control *control, const char *instance, uint64_t bytes,
                            struct message *ret_limit_reply)
{
    Kvcached__SetLimit body = KVCACHED__SET_LIMIT__INIT;

    body.instance = (char *)instance;
    body.limit_case = KVCACHED__SET_LIMIT__LIMIT_BYTES;
    body.bytes = bytes;
    return ask(control, MESSAGE_SET_LIMIT, &body.base, MESSAGE_LIMIT_REPLY, ret_limit_reply);
}

int control_set_limit_ppm(struct control *control, const char *instance, uint32_t ppm,
                          struct message *ret_limit_reply)
{
    Kvcached__SetLimit body = KVCACHED__SET_LIMIT__INIT;

    body.instance = (char *)instance;
    body.limit_case = KVCACHED__SET_LIMIT__LIMIT_PPM;
    body.ppm = ppm;
    return ask(control, MESSAGE_SET_LIMIT, &body.base, MESSAGE_LIMIT_REPLY, ret_limit_reply);
}

int control_delete(struct control *control, const char *instance, bool force,
                   struct message *ret_delete_reply)
{
    Kvcached__Delete body = KVCACHED__DELETE__INIT;

    body.instance = (char *)instance;
    body.force = force;
    return ask(control, MESSAGE_DELETE, &body.base, MESSAGE_DELETE_REPLY, ret_delete_reply);
}

bool control_knows_operations(const struct control *control)
{
    return control_welcome(control)->features & KVCACHED__FEATURE__FEATURE_OPERATIONS;
}

static int check_operations(struct control *control)
{
    if (control_knows_operations(control))
        return 0;
    return fail(control, CONTROL_E_FAILED, "The daemon at %s, version %s, is too old to say that",
                control->address.sun_path, control_welcome(control)->daemon_version);
}

static int ask_operation(struct control *control, uint16_t type, const ProtobufCMessage *body,
                         uint16_t answer_type, struct message *ret)
{
    return check_operations(control) ?: ask(control, type, body, answer_type, ret);
}

int control_events(struct control *control, uint64_t after, bool wait, struct message *ret_events_reply)
{
    Kvcached__Events body = KVCACHED__EVENTS__INIT;
    int r;

    body.after = after;
    body.wait = wait;
    r = check_operations(control) ?: begin(control, MESSAGE_EVENTS, &body.base);
    if (r)
        return r;
    if (wait)
        control->deadline_ms = UINT64_MAX;
    return await(control, MESSAGE_EVENTS_REPLY, ret_events_reply);
}

int control_why(struct control *control, const char *instance, struct message *ret_why_reply)
{
    Kvcached__Why body = KVCACHED__WHY__INIT;

    body.instance = (char *)instance;
    return ask_operation(control, MESSAGE_WHY, &body.base, MESSAGE_WHY_REPLY, ret_why_reply);
}

int control_reload(struct control *control, struct message *ret_reloaded)
{
    Kvcached__Reload body = KVCACHED__RELOAD__INIT;

    return ask_operation(control, MESSAGE_RELOAD, &body.base, MESSAGE_RELOADED, ret_reloaded);
}

int control_info_begin(struct control *control, const char *instance)
{
    Kvcached__Info body = KVCACHED__INFO__INIT;

    if (instance)
        body.instance = (char *)instance;
    return begin(control, MESSAGE_INFO, &body.base);
}

int control_info_end(struct control *control, struct message *ret_info_reply)
{
    return end(control, MESSAGE_INFO_REPLY, ret_info_reply);
}

int control_info(struct control *control, const char *instance, struct message *ret_info_reply)
{
    return control_info_begin(control, instance) ?: await(control, MESSAGE_INFO_REPLY, ret_info_reply);
}
