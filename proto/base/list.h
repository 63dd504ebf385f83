/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Intrusive doubly linked ring. A list head and an unlinked entry both point at themselves, so unlinking
 * twice is harmless and needs no test.
 */

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *prev, *next;
};

#define LIST_INIT(l)                                                                                         \
    {                                                                                                        \
        &(l), &(l)                                                                                           \
    }

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static inline void list_init(struct list *l)
{
    l->prev = l->next = l;
}

static inline bool list_is_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_append(struct list *head, struct list *entry)
{
    entry->prev = head->prev;
    entry->next = head;
    head->prev->next = entry;
    head->prev = entry;
}

static inline void list_prepend(struct list *head, struct list *entry)
{
    list_append(head->next, entry);
}

static inline void list_unlink(struct list *entry)
{
    entry->prev->next = entry->next;
    entry->next->prev = entry->prev;
    list_init(entry);
}

#define list_for_each(it, head) for (struct list *it = (head)->next; it != (head); it = it->next)

/* The body may unlink or free the current entry. */
#define list_for_each_safe(it, head)                                                                         \
    for (struct list *it = (head)->next, *it##_next = it->next; it != (head);                                \
         it = it##_next, it##_next = it->next)

/* Moves all entries of `from` behind those of `to`. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_is_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_first(head, type, member) (list_is_empty(head) ? NULL : container_of((head)->next, type, member))
