/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Records in order, each in one piece of memory with its strings. A reader needs to remember nothing but the
 * last number that it has seen.
 */

#include "events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates.h"

void events_deinit(struct events *events)
{
    for (unsigned i = 0; i < events->n; i++)
        free(events->kept[i]);
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

/* The oldest of those who have most: domains are told apart as by their gates. */
static unsigned find_dispensable(const struct events *events)
{
    unsigned n_of[GATES_N] = {0}, most = 0, i = 0;

    for (unsigned k = 0; k < events->n; k++) {
        unsigned index = gates_index(events->kept[k]->domain);

        if (++n_of[index] > n_of[most])
            most = index;
    }
    while (gates_index(events->kept[i]->domain) != most)
        i++;
    return i;
}

static void drop(struct events *events, unsigned i)
{
    free(events->kept[i]);
    events->n--;
    memmove(&events->kept[i], &events->kept[i + 1], (events->n - i) * sizeof(*events->kept));
}

int events_add(struct events *events, const struct event *event)
{
    struct event *kept = copy(event);

    events->last++;
    if (!kept)
        return -ENOMEM;
    kept->number = events->last;
    if (events->n == EVENTS_MAX)
        drop(events, find_dispensable(events));
    events->kept[events->n++] = kept;
    return 0;
}

const struct event *events_next(const struct events *events, uint64_t after)
{
    unsigned first = 0, end = events->n;

    while (first < end) {
        unsigned middle = first + (end - first) / 2;

        if (events->kept[middle]->number > after)
            end = middle;
        else
            first = middle + 1;
    }
    return first < events->n ? events->kept[first] : NULL;
}
