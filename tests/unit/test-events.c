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

static void add_of(struct events *events, const char *domain)
{
    struct event event = {.domain = domain, .instance = "", .text = ""};

    check_eq(events_add(events, &event), 0);
}

static unsigned count_of(const struct events *events, const char *domain)
{
    const struct event *event;
    unsigned n = 0;

    for (uint64_t after = 0; (event = events_next(events, after)); after = event->number)
        n += strcmp(event->domain, domain) == 0;
    return n;
}

TEST(nobody_pushes_out_what_others_are_told)
{
    struct events events = {0};

    add_of(&events, "");
    for (unsigned i = 0; i < 100; i++)
        add_of(&events, "uid:1");
    for (unsigned i = 0; i < 10 * EVENTS_MAX; i++)
        add_of(&events, "uid:2");
    check_eq(count_of(&events, ""), 1);
    check_eq(count_of(&events, "uid:1"), 100);
    check_eq(count_of(&events, "uid:2"), EVENTS_MAX - 101);
    check_eq(events_next(&events, 101)->number, 101 + 10 * EVENTS_MAX - (EVENTS_MAX - 101) + 1);
    for (unsigned i = 0; i < 2 * EVENTS_MAX; i++)
        add_of(&events, "uid:3");
    check_eq(count_of(&events, "uid:1"), 100);
    check_eq(count_of(&events, "uid:2") + count_of(&events, "uid:3"), EVENTS_MAX - 101);
    check(count_of(&events, "uid:2") >= (EVENTS_MAX - 101) / 2);
    events_deinit(&events);
}

TEST(the_recent_are_shared_too)
{
    struct events events = {.secret = 3};
    const struct event *recent[8];

    check_eq(events_recent(&events, 8, recent), 0);
    add_of(&events, "");
    add_of(&events, "uid:1");
    check_eq(events_recent(&events, 8, recent), 2);
    check_eq(recent[0]->number, 1);
    check_eq(recent[1]->number, 2);
    for (unsigned i = 0; i < 5; i++)
        add_of(&events, "uid:1");
    for (unsigned i = 0; i < 100; i++)
        add_of(&events, "uid:2");
    check_eq(events_recent(&events, 8, recent), 8);
    /* One of the first, and four of each of the others, of which the oldest is too much. */
    check_eq(recent[0]->number, 4);
    check_eq(recent[3]->number, 7);
    check_eq(recent[4]->number, 104);
    check_eq(recent[7]->number, 107);
    events_deinit(&events);
}
