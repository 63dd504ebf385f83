/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Events are noted in the middle of whatever leads to them, and answers to those who wait for some leave when
 * that is over: nobody is written to from inside of something else. Who waits is in a list; a peer has one
 * such request at a time.
 */

#include "chronicle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "peer.h"
#include "server.h"

#define TEXT_MAX 512
#define NOTES_MAX 100 /* of a domain, in GATES_PERIOD_NS */
#define LINES_MAX 10  /* the same, in the log */
#define ALL_LINES_MAX 50
#define REPLY_BYTES_MAX (FRAME_SIZE_MAX - 1024) /* room for what surrounds the events */
#define REPLY_EVENTS_MAX 256

/* ---- Noting ---- */

/* The time of day is for people; order and waiting go by numbers. */
static uint64_t realtime_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / NSEC_PER_MSEC;
}

static bool is_at_will(Kvcached__EventKind kind)
{
    switch (kind) {
    case KVCACHED__EVENT_KIND__EVENT_JOINED:
    case KVCACHED__EVENT_KIND__EVENT_LEFT:
    case KVCACHED__EVENT_KIND__EVENT_LOST:
    case KVCACHED__EVENT_KIND__EVENT_FREED:
    case KVCACHED__EVENT_KIND__EVENT_OVER_LIMIT:
    case KVCACHED__EVENT_KIND__EVENT_WITHIN_LIMIT:
    case KVCACHED__EVENT_KIND__EVENT_MISSED_NOTICE:
    case KVCACHED__EVENT_KIND__EVENT_REFUSED:
    case KVCACHED__EVENT_KIND__EVENT_SCRIBBLED:
    case KVCACHED__EVENT_KIND__EVENT_VIOLATION:
        return true;
    default:
        return false;
    }
}

static void add(struct server *server, const struct event *event, const char *text)
{
    struct event complete = *event;

    complete.realtime_ms = realtime_ms();
    complete.text = text;
    events_add(&server->events, &complete);
    server->has_news = true;
}

static bool may_note(struct server *server, const struct event *event)
{
    struct event suppressed = {
        .kind = KVCACHED__EVENT_KIND__EVENT_SUPPRESSED, .domain = event->domain, .instance = ""};
    enum gate_verdict verdict;

    if (!is_at_will((Kvcached__EventKind)event->kind))
        return true;
    verdict = gates_pass(&server->notes, event->domain, NOTES_MAX, server_now());
    if (verdict == GATE_OPEN)
        return true;
    server->counters.n_suppressed++;
    if (verdict == GATE_CLOSES)
        add(server, &suppressed, "More has happened here in ten seconds than is noted");
    return false;
}

__attribute__((format(printf, 3, 0))) static void note(struct server *server, const struct event *event,
                                                       const char *format, va_list args)
{
    char text[TEXT_MAX];

    if (!may_note(server, event))
        return;
    vsnprintf(text, sizeof(text), format, args);
    add(server, event, text);
}

void chronicle_note(struct server *server, Kvcached__EventKind kind, const struct broker_instance *instance,
                    int32_t pid, uint64_t bytes, const char *format, ...)
{
    struct event event = {
        .kind = (int)kind,
        .pid = pid,
        .bytes = bytes,
        .domain = instance ? broker_domain_name(instance->domain) : "",
        .instance = instance ? instance->name : "",
    };
    va_list args;

    va_start(args, format);
    note(server, &event, format, args);
    va_end(args);
}

void chronicle_note_stranger(struct server *server, Kvcached__EventKind kind, const char *domain, int32_t pid,
                             const char *format, ...)
{
    struct event event = {.kind = (int)kind, .pid = pid, .domain = domain, .instance = ""};
    va_list args;

    va_start(args, format);
    note(server, &event, format, args);
    va_end(args);
}

bool chronicle_may_log(struct server *server, const char *domain)
{
    enum gate_verdict verdict = gates_pass(&server->lines, domain, LINES_MAX, server_now());

    if (verdict == GATE_OPEN)
        verdict = gate_pass(&server->all_lines, ALL_LINES_MAX, server_now());
    if (verdict == GATE_CLOSES)
        log_notice("More happens than is logged: kvctl events and the metrics have it");
    return verdict == GATE_OPEN;
}

/* ---- What the whole daemon goes through ---- */

void chronicle_start(struct server *server)
{
    const struct device_info *info = device_info(server->device);

    chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_STARTED, NULL, getpid(), 0,
                   "kvcachedd " KVCACHED_VERSION " serves GPU %u, %s%s", info->index, info->name,
                   *info->emulated_folder ? " (emulated)" : "");
}

bool chronicle_budget(struct server *server)
{
    uint64_t over_bytes = broker_over_budget(server->broker);
    char over[FORMAT_SIZE_MAX];

    if (!since_note(&server->over_budget, over_bytes > 0, uv_now(&server->loop) * NSEC_PER_MSEC))
        return false;
    if (over_bytes)
        chronicle_note(
            server, KVCACHED__EVENT_KIND__EVENT_OVER_BUDGET, NULL, 0, over_bytes,
            "Instances use %s more than the budget, which others' memory or the configuration limits",
            format_size(over, over_bytes));
    else
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_WITHIN_BUDGET, NULL, 0, 0,
                       "Instances are within the budget");
    return true;
}

void chronicle_sample(struct server *server)
{
    struct history_sample sample = {.ns = uv_now(&server->loop) * NSEC_PER_MSEC};
    struct broker_totals totals;

    broker_totals(server->broker, &totals);
    sample.granted_bytes = totals.granted_bytes;
    sample.leased_bytes = totals.leased_bytes;
    sample.pool_bytes = totals.pool_bytes + totals.creating_bytes;
    sample.leaving_bytes = totals.limbo_bytes + totals.destroying_bytes;
    sample.foreign_bytes = totals.foreign_bytes;
    sample.budget_bytes = totals.budget_bytes;
    history_note(&server->history, &sample);
}

/* ---- Telling ---- */

static void fill_event(Kvcached__Event *body, const struct event *event)
{
    kvcached__event__init(body);
    body->number = event->number;
    body->kind = (Kvcached__EventKind)event->kind;
    body->realtime_ms = event->realtime_ms;
    body->domain = (char *)event->domain;
    body->instance = (char *)event->instance;
    body->pid = event->pid;
    body->bytes = event->bytes;
    body->text = (char *)event->text;
}

/* As many as fit; the next request asks for those behind them. A number that there is not yet is one of
 * another daemon, whose follower is to be told so. */
static void answer(struct peer *peer, uint32_t request, uint64_t after)
{
    const struct events *events = &peer->server->events;
    Kvcached__Event bodies[REPLY_EVENTS_MAX], *pointers[REPLY_EVENTS_MAX];
    Kvcached__EventsReply reply = KVCACHED__EVENTS_REPLY__INIT;
    const struct event *event;
    size_t bytes = 0;

    while (reply.n_events < REPLY_EVENTS_MAX && (event = events_next(events, after))) {
        Kvcached__Event *body = pointers[reply.n_events] = &bodies[reply.n_events];

        fill_event(body, event);
        bytes += kvcached__event__get_packed_size(body) + 4;
        if (bytes > REPLY_BYTES_MAX)
            break;
        reply.n_events++;
        after = event->number;
    }
    reply.events = pointers;
    reply.last = events->last;
    reply.life = peer->server->life;
    peer_send(peer, MESSAGE_EVENTS_REPLY, request, &reply.base, NULL);
}

int chronicle_asked(struct peer *peer, struct message *message)
{
    const Kvcached__Events *body = (const Kvcached__Events *)message->body;
    struct server *server = peer->server;

    if (!body->wait || body->after > server->events.last || events_next(&server->events, body->after)) {
        answer(peer, message->request, body->after);
        return 0;
    }
    if (!list_is_empty(&peer->follow_link)) {
        peer_refuse(peer, message->request, KVCACHED__ERROR__ERROR_INVALID,
                    "another Events of this connection waits already");
        return 0;
    }
    peer->follow_request = message->request;
    peer->follow_after = body->after;
    list_append(&server->followers, &peer->follow_link);
    return 0;
}

void chronicle_tell(struct server *server)
{
    struct peer *peer;

    server->has_news = false;
    while ((peer = list_first(&server->followers, struct peer, follow_link))) {
        list_unlink(&peer->follow_link);
        answer(peer, peer->follow_request, peer->follow_after);
    }
}
