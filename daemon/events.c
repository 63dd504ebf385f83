/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A ring of records, each in one piece of memory with its strings. The number of a record tells its place, so
 * a reader needs to remember nothing but the last number that it has seen.
 */

#include "events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void events_deinit(struct events *events)
{
    for (unsigned i = 0; i < EVENTS_MAX; i++)
        free(events->ring[i]);
    *events = (struct events){0};
}

/* Returns where the next string can go. */
static char *put(char *to, const char *text, const char **ret)
{
    *ret = to;
    for (; *text; text++)
        *to++ = *text >= ' ' && *text <= '~' ? *text : '?';
    *to++ = '\0';
    return to;
}

static struct event *copy(const struct event *event)
{
    size_t size = strlen(event->domain) + strlen(event->instance) + strlen(event->text) + 3;
    struct event *ret = malloc(sizeof(*ret) + size);
    char *to;

    if (!ret)
        return NULL;
    *ret = *event;
    to = put((char *)(ret + 1), event->domain, &ret->domain);
    to = put(to, event->instance, &ret->instance);
    put(to, event->text, &ret->text);
    return ret;
}

int events_add(struct events *events, const struct event *event)
{
    struct event **slot = &events->ring[++events->last % EVENTS_MAX];

    free(*slot);
    *slot = copy(event);
    if (!*slot)
        return -ENOMEM;
    (*slot)->number = events->last;
    return 0;
}

const struct event *events_next(const struct events *events, uint64_t after)
{
    uint64_t number = events->last > EVENTS_MAX ? events->last - EVENTS_MAX + 1 : 1;

    if (after >= events->last)
        return NULL;
    if (number <= after)
        number = after + 1;
    for (; number <= events->last; number++)
        if (events->ring[number % EVENTS_MAX])
            return events->ring[number % EVENTS_MAX];
    return NULL;
}
