/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The loop: events come in, the broker decides, its actions are carried out. Every event ends in
 * server_settle(), which runs until nothing is left to do. Before the loop goes to sleep, the few timers are
 * set that are needed; with nothing to wait for there are none.
 *
 * Failures of the driver are answers that the broker gets; only a reading of free memory is asked for again
 * here, since there is no other answer to that question.
 */

#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "chronicle.h"
#include "controller.h"
#include "grant.h"
#include "handshake.h"
#include "http.h"
#include "instance_status.h"
#include "lessor.h"
#include "lock.h"
#include "memory.h"
#include "notify.h"
#include "peer.h"
#include "places.h"
#include "reload.h"
#include "sockets.h"

#define LOOK_AGAIN_MS 250
#define THROTTLE_MS 10
#define DRAIN_MS 5000
#define STOP_NS NSEC_PER_SEC

uint64_t server_now(void)
{
    return uv_hrtime();
}

/* ---- The driver's answers ---- */

static void on_look_again(uv_timer_t *timer)
{
    struct server *server = timer->data;

    backing_submit(server->backing, &server->look, BACKING_LOOK);
    server_settle(server);
}

static void on_looked(struct server *server)
{
    if (server->look.r == 0) {
        if (server->look_failed)
            chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_DRIVER_RECOVERED, NULL, 0, 0,
                           "The driver says again how much memory is free");
        server->look_failed = false;
        broker_look(server->broker, server->look.bytes, server_now());
        return;
    }
    if (!server->look_failed) {
        log_warning("The driver doesn't say how much memory is free: %s", server->look.why);
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_DRIVER_FAILED, NULL, 0, 0,
                       "The driver doesn't say how much memory is free: %s", server->look.why);
    }
    server->look_failed = true;
    broker_look_failed(server->broker, server_now());
    uv_timer_start(&server->look_again, on_look_again, LOOK_AGAIN_MS, 0);
}

static void on_backing_done(void *userdata)
{
    struct server *server = userdata;
    struct backing_job *job;

    while ((job = backing_next_done(server->backing))) {
        if (job == &server->look)
            on_looked(server);
        else
            memory_done(server, container_of(job, struct slot, job));
    }
    server_settle(server);
}

/* ---- The broker's actions ---- */

static void carry_out(struct server *server, const struct broker_action *action)
{
    switch (action->type) {
    case BROKER_ACTION_CREATE:
        memory_create(server, action->extent, action->class_index);
        break;
    case BROKER_ACTION_EXPORT:
        memory_export(server, action->extent);
        break;
    case BROKER_ACTION_DESTROY:
        memory_release(server, action->extent);
        break;
    case BROKER_ACTION_LOOK:
        backing_submit(server->backing, &server->look, BACKING_LOOK);
        break;
    case BROKER_ACTION_GRANT:
        grant_granted(action->request->owner);
        break;
    case BROKER_ACTION_REFUSE:
        if (action->request->reserves)
            controller_refused(action->request->owner, action->error);
        else
            grant_refused(action->request->owner, action->error);
        break;
    case BROKER_ACTION_LEASE:
        lessor_granted(action->request->owner);
        break;
    case BROKER_ACTION_NOTICE:
        lessor_send_notice(action);
        break;
    case BROKER_ACTION_SCRIBBLED:
        lessor_note_scribble(server, action->peer);
        break;
    case BROKER_ACTION_RESERVED:
        controller_reserved(action->request->owner);
        break;
    case BROKER_ACTION_STATUS:
        instance_status_write(server, action->instance);
        break;
    case BROKER_ACTION_FORGET:
        action->instance->owner = instance_status_free(action->instance->owner);
        break;
    }
}

/* ---- Settling ---- */

/* Each once: those that end up waiting again stand behind the others. */
static void retry(struct list *waiting, void (*again)(struct peer *peer))
{
    unsigned n = 0;

    list_for_each (it, waiting)
        n++;
    for (; n > 0 && !list_is_empty(waiting); n--) {
        struct peer *peer = container_of(waiting->next, struct peer, stall_link);

        list_unlink(&peer->stall_link);
        again(peer);
    }
}

static void retry_all(struct server *server)
{
    server->room_grew = false;
    retry(&server->throttled, peer_go_on);
    retry(&server->stalled, grant_send);
}

static bool step(struct server *server)
{
    struct broker_action action;
    struct peer *doomed;

    if (broker_next_action(server->broker, &action)) {
        carry_out(server, &action);
        return true;
    }
    doomed = list_first(&server->doomed, struct peer, queue_link);
    if (doomed) {
        peer_disconnect(doomed);
        return true;
    }
    if (server->room_grew) {
        retry_all(server);
        return true;
    }
    if (chronicle_budget(server) || server->has_news) {
        chronicle_tell(server);
        return true;
    }
    return false;
}

static void on_tick(uv_timer_t *timer)
{
    struct server *server = timer->data;

    broker_tick(server->broker, server_now());
    server_settle(server);
}

static void on_handshake(uv_timer_t *timer)
{
    struct server *server = timer->data;

    handshake_expire(server, server_now());
    server_settle(server);
}

static void on_chill(uv_timer_t *timer)
{
    struct server *server = timer->data;

    grant_chill(server, server_now());
    server_settle(server);
}

static void on_throttle(uv_timer_t *timer)
{
    struct server *server = timer->data;

    server->room_grew = true;
    server_settle(server);
}

/* One that runs out too early stays, and is set anew then: deadlines move with every grant. uv_now() is
 * server_now() as the loop has seen it last. */
static void set_timer(uv_timer_t *timer, uv_timer_cb callback, uint64_t deadline_ns)
{
    uint64_t left_ms = u64_sub_floor(deadline_ns / NSEC_PER_MSEC, uv_now(timer->loop)) + 1;

    if (deadline_ns == UINT64_MAX)
        uv_timer_stop(timer);
    else if (!uv_is_active((uv_handle_t *)timer) || uv_timer_get_due_in(timer) > left_ms)
        uv_timer_start(timer, callback, left_ms, 0);
}

/* Once a turn, before the loop goes to sleep. */
static void on_prepare(uv_prepare_t *prepare)
{
    struct server *server = prepare->data;
    const struct peer *oldest = list_first(&server->handshakes, struct peer, hello_link);

    server->turn++;
    chronicle_sample(server);
    set_timer(&server->tick, on_tick, broker_deadline(server->broker));
    set_timer(&server->chill, on_chill, grant_chill_due(server));
    set_timer(&server->handshake, on_handshake, oldest ? oldest->hello->deadline_ns : UINT64_MAX);
    if (list_is_empty(&server->throttled))
        uv_timer_stop(&server->throttle);
    else if (!uv_is_active((uv_handle_t *)&server->throttle))
        uv_timer_start(&server->throttle, on_throttle, THROTTLE_MS, 0);
}

void server_settle(struct server *server)
{
    if (server->settling)
        return;
    server->settling = true;
    if (server->sent_turn != server->turn)
        grant_close_sent(server);
    while (step(server))
        ;
    server->settling = false;
    backing_flush(server->backing);
    if (server->draining && server->n_slots == 0)
        uv_stop(&server->loop);
}

/* ---- Limits of the configuration ---- */

void server_set_config_limit(struct server *server, const struct broker_instance *instance)
{
    const char *domain = broker_domain_name(instance->domain);
    uint64_t bytes =
        config_limit(server->config, domain, instance->name, device_info(server->device)->total_bytes);

    broker_set_limit(server->broker, domain, instance->name, BROKER_LIMIT_CONFIG, bytes);
}

/* ---- What the service manager is told ---- */

void server_say_ready(const struct server *server)
{
    const struct device_info *info = device_info(server->device);
    char status[256];

    snprintf(status, sizeof(status), "Serving GPU %u, %s%s", info->index, info->name,
             *info->emulated_folder ? " (emulated)" : "");
    notify_ready(status);
}

/* ---- Ending ---- */

static void on_drain_end(uv_timer_t *timer)
{
    struct server *server = timer->data;

    log_warning("The driver has not taken everything back in time");
    server->drain_failed = true;
    uv_stop(&server->loop);
}

static void drain(struct server *server)
{
    if (server->draining)
        return;
    notify_stopping();
    chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_STOPPING, NULL, 0, 0, "The daemon is stopping");
    chronicle_tell(server);
    server->draining = true;
    list_for_each (it, &server->peers) {
        struct peer *peer = container_of(it, struct peer, link);

        peer_fail(peer, KVCACHED__ERROR__ERROR_SHUTDOWN, "%s", PEER_STOPPING);
        peer_bury(peer);
    }
    broker_drain(server->broker, server_now());
    uv_timer_start(&server->drain_by, on_drain_end, DRAIN_MS, 0);
    list_for_each (it, &server->listeners)
        listener_accept_rest(container_of(it, struct listener, link));
    sockets_close(server);
    server_settle(server);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct server *server = handle->data;
    char sentence[CONFIG_ERROR_MAX];

    if (number != SIGHUP)
        drain(server);
    else if (!server->draining)
        reload(server, sentence);
    server_settle(server);
}

static void on_watchdog(uv_timer_t *timer)
{
    notify_alive();
}

/* ---- Starting ---- */

static uint64_t raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 1024;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return getrlimit(RLIMIT_NOFILE, &limit) < 0 ? 1024 : u64_min(limit.rlim_cur, 1024 * 1024);
}

static int fail(char *error, int r, const char *what)
{
    snprintf(error, SERVER_ERROR_MAX, "%.256s: %s", what, strerror(-r));
    return r;
}

static int start_loop(struct server *server, char *error)
{
    uv_timer_t *timers[] = {&server->tick,       &server->handshake, &server->throttle, &server->chill,
                            &server->look_again, &server->drain_by,  &server->watchdog};
    int r = uv_loop_init(&server->loop);

    if (r < 0)
        return fail(error, r, "Cannot make an event loop");
    server->has_loop = true;
    for (size_t i = 0; i < ARRAY_SIZE(timers); i++) {
        uv_timer_init(&server->loop, timers[i]);
        timers[i]->data = server;
    }
    uv_prepare_init(&server->loop, &server->prepare);
    server->prepare.data = server;
    for (size_t i = 0; i < ARRAY_SIZE(server->signals); i++) {
        uv_signal_init(&server->loop, &server->signals[i]);
        server->signals[i].data = server;
    }
    return 0;
}

/* Where daemons of one GPU meet. An emulated one is somebody's own affair, whose traces stay with its
 * socket. */
static int find_lock_dir(const struct server *server, char ret[static PATH_MAX])
{
    const char *socket = server->config->socket, *slash = socket ? strrchr(socket, '/') : NULL;

    if (!slash || !*device_info(server->device)->emulated_folder)
        return places_runtime_dir(ret);
    snprintf(ret, PATH_MAX, "%.*s", slash > socket ? (int)(slash - socket) : 1, socket);
    return 0;
}

/* One daemon per GPU, whatever its socket is called. */
static int lock_device(struct server *server, char *error)
{
    const char *uuid = device_info(server->device)->uuid;
    char dir[PATH_MAX], path[PATH_MAX + CUDA_UUID_MAX + 8];
    int r;

    r = find_lock_dir(server, dir);
    if (r < 0)
        return 0; /* a user without a folder of sockets; the socket's own lock remains */
    r = places_make_dir(dir);
    if (r < 0)
        return fail(error, r, dir);
    snprintf(path, sizeof(path), "%s/%s.lock", dir, uuid);
    r = lock_take(path, &server->device_lock);
    if (r == LOCK_E_HELD) {
        snprintf(error, SERVER_ERROR_MAX, "Another kvcachedd serves %s", uuid);
        return -EBUSY;
    }
    return r < 0 ? fail(error, r, path) : 0;
}

static int load_limits(struct server *server, char *error)
{
    char dir[PATH_MAX], path[PATH_MAX + CUDA_UUID_MAX + 1];
    int r = 0;

    if (server->config->state_dir)
        snprintf(dir, sizeof(dir), "%s", server->config->state_dir);
    else
        r = places_state_dir(dir);
    if (r < 0) {
        snprintf(error, SERVER_ERROR_MAX, "There is no place for state: give --state-dir, or set HOME");
        return r;
    }
    snprintf(path, sizeof(path), "%s/%s", dir, device_info(server->device)->uuid);
    return limit_store_load(path, &server->limits, error);
}

static int apply_limits(struct server *server)
{
    uint64_t total_bytes = device_info(server->device)->total_bytes;

    list_for_each (it, &server->limits->entries) {
        const struct limit_entry *entry = container_of(it, struct limit_entry, link);
        int r = broker_set_limit(server->broker, entry->domain, entry->instance, BROKER_LIMIT_ADMIN,
                                 limit_bytes(&entry->limit, total_bytes));

        if (r != 0)
            return r < 0 ? r : -EINVAL;
    }
    return 0;
}

static int start_broker(struct server *server, char *error)
{
    uint64_t free_bytes;
    const char *why;
    int r;

    r = device_free_bytes(server->device, &free_bytes, &why);
    if (r < 0) {
        snprintf(error, SERVER_ERROR_MAX, "The driver doesn't say how much memory is free: %s", why);
        return r;
    }
    r = broker_new(&server->settings.broker, free_bytes, server_now(), &server->broker);
    if (r == 0)
        r = apply_limits(server);
    if (r == 0)
        r = backing_new(&server->loop, server->device, on_backing_done, server, &server->backing);
    return r < 0 ? fail(error, r, "Cannot start") : 0;
}

/* Without randomness at the very start of a machine something must do. */
static uint64_t random_number(uint64_t instead)
{
    uint64_t number;

    return getrandom(&number, sizeof(number), 0) == sizeof(number) ? number : instead;
}

static struct server *server_alloc(const struct options *options, struct config *config,
                                   struct device *device)
{
    const struct device_info *info = device_info(device);
    struct server *server = calloc(1, sizeof(*server));
    struct list *lists[] = {&server->listeners,  &server->links,   &server->peers,
                            &server->handshakes, &server->stalled, &server->keep_waiting,
                            &server->throttled,  &server->doomed,  &server->followers};

    if (!server)
        return NULL;
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
        list_init(lists[i]);
    list_init(&server->look.link);
    server->look.fd = server->sent_fd = -1;
    server->options = options;
    server->config = config;
    server->device = device;
    server->started_ns = server_now();
    server->life = random_number(server->started_ns);
    server->events.secret = server->notes.secret = server->lines.secret = random_number(server->started_ns);
    slots_init(&server->slots);
    settings_init(&server->settings, config, info->total_bytes, info->granularity_bytes, info->n_devices,
                  raise_descriptor_limit());
    flight_init(&server->flight, server->settings.in_flight_max);
    reload_apply(server);
    return server;
}

int server_new(const struct options *options, struct config *config, struct device *device,
               struct server **ret, char error[static SERVER_ERROR_MAX])
{
    struct server *server = server_alloc(options, config, device);
    int r;

    if (!server) {
        config_free(config);
        device_close(device);
        return fail(error, -ENOMEM, "Cannot start");
    }
    r = start_loop(server, error);
    if (r == 0)
        r = lock_device(server, error);
    if (r == 0)
        r = load_limits(server, error);
    if (r == 0)
        r = sockets_open(server, error);
    if (r == 0)
        r = start_broker(server, error);
    if (r == 0)
        r = http_open(server, error);
    if (r < 0) {
        server_free(server);
        return r;
    }
    *ret = server;
    return 0;
}

int server_run(struct server *server)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    uint64_t watchdog_ms = notify_watchdog_ms();
    int r = sockets_start(server);

    for (size_t i = 0; i < ARRAY_SIZE(numbers) && r == 0; i++)
        r = uv_signal_start(&server->signals[i], on_signal, numbers[i]);
    if (r < 0)
        return r;
    if (watchdog_ms)
        uv_timer_start(&server->watchdog, on_watchdog, watchdog_ms, watchdog_ms);
    uv_prepare_start(&server->prepare, on_prepare);
    chronicle_start(server);
    server_settle(server);
    server_say_ready(server);
    uv_run(&server->loop, UV_RUN_DEFAULT);
    return 0;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* Instances outlive the drain that have a limit, or bytes that others keep alive. */
static void free_broker(struct server *server)
{
    struct broker_instance *instance = NULL;

    if (!server->broker)
        return;
    while ((instance = broker_instance_next(server->broker, instance)))
        instance->owner = instance_status_free(instance->owner);
    server->broker = broker_free(server->broker);
}

bool server_free(struct server *server)
{
    http_close(server);
    sockets_close(server);
    if (server->drain_failed ||
        (server->backing && backing_stop(server->backing, server_now() + STOP_NS) < 0))
        return false;
    if (server->has_loop) {
        uv_walk(&server->loop, close_handle, NULL);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        uv_loop_close(&server->loop);
    }
    close_fd(server->sent_fd);
    backing_free(server->backing);
    free_broker(server);
    limit_store_free(server->limits);
    slots_deinit(&server->slots);
    flight_deinit(&server->flight);
    events_deinit(&server->events);
    lock_release(server->device_lock);
    config_free(server->config);
    device_close(server->device);
    free(server);
    return true;
}
