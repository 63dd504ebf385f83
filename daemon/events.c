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

/* The oldest of those who have most. */
static unsigned find_dispensable(const struct events *events)
{
    unsigned most = 0, i = 0;

    for (unsigned group = 0; group < GATES_N; group++)
        if (events->n_of[group] > events->n_of[most])
            most = group;
    while (events->kept[i]->group != most)
        i++;
    return i;
}

static void drop(struct events *events, unsigned i)
{
    events->n_of[events->kept[i]->group]--;
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
    kept->group = (uint16_t)gates_index(events->secret, event->domain);
    if (events->n == EVENTS_MAX)
        drop(events, find_dispensable(events));
    events->kept[events->n++] = kept;
    events->n_of[kept->group]++;
    return 0;
}

/* The least number which is so large that, with no more than so many of each group, there are `n`. */
static unsigned find_share(const struct events *events, unsigned n)
{
    uint16_t n_with[EVENTS_MAX + 1] = {0}; /* groups, by how many events they have */
    unsigned share = 0, sum = 0, n_larger = GATES_N;

    for (unsigned group = 0; group < GATES_N; group++)
        n_with[events->n_of[group]]++;
    while (sum < n) {
        n_larger -= n_with[share++];
        sum += n_larger;
    }
    return share;
}

unsigned events_recent(const struct events *events, unsigned max, const struct event **ret)
{
    unsigned n = events->n < max ? events->n : max;
    unsigned share = find_share(events, n), left = n;
    uint16_t taken[GATES_N] = {0};

    for (unsigned i = events->n; left && i-- > 0;) {
        const struct event *event = events->kept[i];

        if (taken[event->group] < share) {
            taken[event->group]++;
            ret[--left] = event;
        }
    }
    return n;
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
