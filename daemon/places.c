/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Default locations, from the environment that systemd or a login session sets up and from who we are.
 * Nothing is made here except by places_make_dir().
 */

#include "places.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int compose(char *ret, const char *dir, const char *suffix)
{
    int n = snprintf(ret, PATH_MAX, "%s%s", dir, suffix);

    return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

/* systemd lists several folders with colons; ours is the first. */
static int from_unit(char *ret, const char *variable)
{
    const char *dirs = getenv(variable);
    int n;

    if (!dirs || *dirs != '/')
        return -ENOENT;
    n = snprintf(ret, PATH_MAX, "%.*s", (int)strcspn(dirs, ":"), dirs);
    return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int from_system(char *ret, const char *dir)
{
    if (geteuid() != 0 && access(dir, W_OK) < 0)
        return -ENOENT;
    return compose(ret, dir, "");
}

static int from_user(char *ret, const char *variable, const char *in_home)
{
    const char *dir = getenv(variable), *home = getenv("HOME");

    if (dir && *dir == '/')
        return compose(ret, dir, "/kvcached");
    if (in_home && home && *home == '/')
        return compose(ret, home, in_home);
    return -ENOENT;
}

int places_runtime_dir(char ret[static PATH_MAX])
{
    if (from_unit(ret, "RUNTIME_DIRECTORY") == 0 || from_system(ret, "/run/kvcached") == 0)
        return 0;
    return from_user(ret, "XDG_RUNTIME_DIR", NULL);
}

int places_state_dir(char ret[static PATH_MAX])
{
    if (from_unit(ret, "STATE_DIRECTORY") == 0 || from_system(ret, "/var/lib/kvcached") == 0)
        return 0;
    return from_user(ret, "XDG_STATE_HOME", "/.local/state/kvcached");
}

static int make_one(const char *path)
{
    if (mkdir(path, 0755) == 0)
        return chmod(path, 0755) < 0 ? -errno : 0;
    return errno == EEXIST ? 0 : -errno;
}

int places_make_dir(const char *path)
{
    char part[PATH_MAX];
    struct stat st;
    int r;

    r = compose(part, path, "");
    if (r < 0)
        return r;
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        r = make_one(part);
        *slash = '/';
        if (r < 0 && r != -EROFS && r != -EACCES) /* what exists further down decides */
            return r;
    }
    r = make_one(part);
    if (r < 0)
        return r;
    if (stat(part, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}
