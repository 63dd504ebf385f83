/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The daemon's sockets: the main one for engines, the one for kvctl beside it, and one for each configured
 * domain. Any of them may come from systemd instead, by the names "engine", "control" and the domain's.
 *
 * At the default place the sockets can also be found by the GPU's UUID, through symbolic links; and so can a
 * domain's that is called as the main one is there, since its folder may be a tenant's /run/kvcached. Links
 * to systemd's sockets stay when the daemon goes, as these do.
 *
 * Everybody who may use a socket is in its group; the mode of a domain's socket is the administrator's
 * business, since what guards it is usually the folder that only that tenant sees.
 */

#include "sockets.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/parse.h"
#include "listener.h"
#include "notify.h"
#include "peer.h"
#include "places.h"

#define DEFAULT_GROUP "kvcached"
#define DEFAULT_MODE 0660

struct named_link {
    struct list link;
    char path[];
};

int sockets_find_group(const char *name, gid_t *ret)
{
    const struct group *group = getgrnam(name);
    uint64_t number;

    if (group) {
        *ret = group->gr_gid;
        return 0;
    }
    if (parse_u64(name, &number) < 0 || number >= (gid_t)-1)
        return -ENOENT;
    *ret = (gid_t)number;
    return 0;
}

static bool may_give_to(gid_t gid)
{
    gid_t groups[256];
    int n = getgroups(256, groups);

    if (geteuid() == 0 || gid == getegid())
        return true;
    for (int i = 0; i < n; i++) {
        if (groups[i] == gid)
            return true;
    }
    return false;
}

/* A group that was asked for must be there; the default one is used where it is. */
static int find_access(const char *group, uint64_t mode, struct listener_access *ret, char *error)
{
    gid_t gid = (gid_t)-1;

    if (group && sockets_find_group(group, &gid) < 0) {
        snprintf(error, SERVER_ERROR_MAX, "There is no group %s", group);
        return -ENOENT;
    }
    if (!group && (sockets_find_group(DEFAULT_GROUP, &gid) < 0 || !may_give_to(gid)))
        gid = (gid_t)-1;
    *ret = (struct listener_access){.gid = gid, .mode = mode == CONFIG_UNSET ? DEFAULT_MODE : (mode_t)mode};
    return 0;
}

static int open_one(struct server *server, enum listener_kind kind, const char *name, const char *path,
                    const char *domain, const struct listener_access *access, char *error)
{
    struct listener *listener;
    int fd = notify_claim_socket(name);
    int r;

    if (fd >= 0)
        r = listener_inherit(kind, fd, domain, &listener, error);
    else
        r = listener_new(kind, path, domain, access, &listener, error);
    if (r < 0)
        return r;
    list_append(&server->listeners, &listener->link);
    return 0;
}

static struct listener *last_opened(struct server *server)
{
    return container_of(server->listeners.prev, struct listener, link);
}

static int link_by_uuid(struct server *server, const char *dir, const struct listener *listener,
                        const char *suffix, char *error)
{
    const char *uuid = device_info(server->device)->uuid;
    size_t size = strlen(dir) + strlen(uuid) + strlen(suffix) + 8;
    struct named_link *named = malloc(sizeof(*named) + size);

    if (!named) {
        snprintf(error, SERVER_ERROR_MAX, "Out of memory");
        return -ENOMEM;
    }
    snprintf(named->path, size, "%s/%s.sock%s", dir, uuid, suffix);
    unlink(named->path); /* we hold the lock of this GPU, so it is nobody's */
    if (symlink(strrchr(listener->path, '/') + 1, named->path) < 0) {
        int r = -errno;

        snprintf(error, SERVER_ERROR_MAX, "Cannot make the link %s: %s", named->path, strerror(-r));
        free(named);
        return r;
    }
    if (listener->inherited)
        free(named);
    else
        list_append(&server->links, &named->link);
    return 0;
}

static bool lies_in(const char *path, const char *dir)
{
    size_t length = strlen(dir);

    return strncmp(path, dir, length) == 0 && strrchr(path, '/') == path + length;
}

static int default_path(const struct server *server, char *dir, char *path, char *error)
{
    if (places_runtime_dir(dir) < 0) {
        snprintf(error, SERVER_ERROR_MAX,
                 "There is no place for sockets: give --socket, or set XDG_RUNTIME_DIR");
        return -ENOENT;
    }
    if (snprintf(path, PATH_MAX, "%s/gpu%u.sock", dir, device_info(server->device)->index) >= PATH_MAX) {
        snprintf(error, SERVER_ERROR_MAX, "XDG_RUNTIME_DIR is too long");
        return -ENAMETOOLONG;
    }
    return 0;
}

static int open_main(struct server *server, const struct listener_access *access, char *error)
{
    const char *given = server->config->socket;
    char dir[PATH_MAX] = "", path[PATH_MAX] = "", control[PATH_MAX + 8];
    struct listener *listener;
    bool has_links;
    int r;

    if (given)
        snprintf(path, sizeof(path), "%s", given);
    else if ((r = default_path(server, dir, path, error)) < 0 && !notify_was_passed("engine"))
        return r;
    r = open_one(server, LISTENER_ENGINE, "engine", path, NULL, access, error);
    if (r < 0)
        return r;
    listener = last_opened(server);
    has_links = !given && lies_in(listener->path, dir);
    if (has_links && (r = link_by_uuid(server, dir, listener, "", error)) < 0)
        return r;
    snprintf(control, sizeof(control), "%s.ctl", listener->path);
    r = open_one(server, LISTENER_CONTROL, "control", control, NULL, access, error);
    if (r < 0 || !has_links || !lies_in(last_opened(server)->path, dir))
        return r;
    return link_by_uuid(server, dir, last_opened(server), ".ctl", error);
}

static int link_domain(struct server *server, const struct listener *listener, char *error)
{
    const char *slash = strrchr(listener->path, '/');
    _cleanup_free_ char *dir = strndup(listener->path, (size_t)(slash - listener->path));
    char name[32];

    if (!dir)
        return snprintf(error, SERVER_ERROR_MAX, "Out of memory"), -ENOMEM;
    snprintf(name, sizeof(name), "gpu%u.sock", device_info(server->device)->index);
    return strcmp(slash + 1, name) == 0 ? link_by_uuid(server, dir, listener, "", error) : 0;
}

static int open_domains(struct server *server, char *error)
{
    const struct config *config = server->config;

    for (size_t i = 0; i < config->n_domains; i++) {
        const struct config_domain *domain = &config->domains[i];
        struct listener_access access;
        int r;

        r = find_access(domain->group ?: config->socket_group, domain->mode, &access, error);
        if (r == 0)
            r = open_one(server, LISTENER_ENGINE, domain->name, domain->socket, domain->name, &access, error);
        if (r == 0 && !last_opened(server)->inherited)
            r = link_domain(server, last_opened(server), error);
        if (r < 0)
            return r;
    }
    return 0;
}

int sockets_open(struct server *server, char error[static SERVER_ERROR_MAX])
{
    struct listener_access access;
    const char *unclaimed;
    int r;

    r = find_access(server->config->socket_group, CONFIG_UNSET, &access, error);
    if (r == 0)
        r = open_main(server, &access, error);
    if (r == 0)
        r = open_domains(server, error);
    if (r < 0)
        return r;
    unclaimed = notify_unclaimed_socket();
    if (unclaimed) {
        snprintf(error, SERVER_ERROR_MAX,
                 "A socket named \"%.80s\" was passed; it may be engine, control or a configured domain",
                 unclaimed);
        return -EINVAL;
    }
    return 0;
}

static void on_connection(struct listener *listener, int fd)
{
    struct server *server = listener->userdata;

    peer_accept(server, listener, fd);
    server_settle(server);
}

int sockets_start(struct server *server)
{
    list_for_each (it, &server->listeners) {
        int r = listener_start(container_of(it, struct listener, link), &server->loop, on_connection, server);

        if (r < 0)
            return r;
    }
    return 0;
}

void sockets_close(struct server *server)
{
    list_for_each_safe (it, &server->links) {
        struct named_link *named = container_of(it, struct named_link, link);

        unlink(named->path);
        list_unlink(&named->link);
        free(named);
    }
    list_for_each_safe (it, &server->listeners)
        listener_close(container_of(it, struct listener, link));
}
