/* SPDX-License-Identifier: Apache-2.0 */
#include "events.h"

#include <stdio.h>
#include <string.h>

#include "test.h"

static struct event say(const char *text)
{
    return (struct event){.kind = 3, .pid = 4, .bytes = 5, .domain = "d", .instance = "i", .text = text};
}

TEST(nothing_has_happened)
{
    struct events events = {0};

    check(!events_next(&events, 0));
    check(!events_next(&events, UINT64_MAX));
    events_deinit(&events);
}

TEST(copies_and_numbers)
{
    struct events events = {0};
    char text[] = "one\033[2J\n\xff";
    struct event event = say(text);
    const struct event *kept;

    check_eq(events_add(&events, &event), 0);
    memset(text, 'x', sizeof(text) - 1);
    kept = events_next(&events, 0);
    check_eq(kept->number, 1);
    check_eq(kept->kind, 3);
    check_eq(kept->pid, 4);
    check_eq(kept->bytes, 5);
    check_str(kept->domain, "d");
    check_str(kept->instance, "i");
    check_str(kept->text, "one?[2J??");
    check(!events_next(&events, 1));
    events_deinit(&events);
}

TEST(the_newest_are_kept)
{
    enum { N = 3 * EVENTS_MAX + 7 };
    struct events events = {0};
    const struct event *event;
    uint64_t after = 0, n = 0;
    char text[24];

    for (unsigned i = 1; i <= N; i++) {
        struct event one = say(text);

        snprintf(text, sizeof(text), "%u", i);
        check_eq(events_add(&events, &one), 0);
    }
    check_eq(events.last, N);
    check_eq(events_next(&events, 0)->number, N - EVENTS_MAX + 1);
    for (; (event = events_next(&events, after)); after = event->number, n++) {
        snprintf(text, sizeof(text), "%llu", (unsigned long long)event->number);
        check_str(event->text, text);
    }
    check_eq(n, EVENTS_MAX);
    check_eq(after, N);
    check_eq(events_next(&events, N - 1)->number, N);
    check(!events_next(&events, N + 5));
    events_deinit(&events);
}
