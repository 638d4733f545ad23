/*
 * The launcher: makes inits, and is their parent. Set up by launcher/server.py, which becomes it.
 *
 * An init is a copy of this process (create.c): nothing is executed between clone and the loop of
 * init, and there is 0.1 MB to copy. One thread, one poll loop; it waits for nobody.
 */
#ifndef NATIVERT_LAUNCHER_H
#define NATIVERT_LAUNCHER_H

#include "init.h"

/* ---- mounts.c: mounts beneath a root that is being built ---- */

/* Whether mount_setattr(2) may be called: Linux 5.12. */
extern bool may_set_attributes;

int target_open(int root, const char *path);
int target_make(int root, const char *path, bool directory);
int mount_flags(const char *path, unsigned long flags, bool recursive);
int mount_bind(const char *source, int root, const char *target, unsigned long flags,
	       bool recursive, struct failure *failure);
int mount_new(const char *source, int root, const char *target, const char *type,
	      unsigned long flags, const char *data, struct failure *failure);

/* Long enough for "/proc/self/fd/" and a number. */
#define FD_PATH 32

const char *fd_path(int fd, char path[FD_PATH]);

/* ---- rootfs.c: the root file system of an instance ---- */

int rootfs_build(const char *new_root, const struct json *steps, int64_t shm_bytes,
		 struct failure *failure);
int rootfs_finish(const char *new_root, int root, bool own_network, struct failure *failure);
int make_private(void);

/* ---- namespaces.c ---- */

/* In the order in which their descriptors travel; net only if it is the instance's own. */
enum { HELD_USER, HELD_UTS, HELD_IPC, HELD_NET, MAX_HELD };

int namespaces_create(int64_t id_base, int64_t id_count, bool network, int held[MAX_HELD],
		      pid_t *helper, struct failure *failure);
int namespaces_join(const int held[MAX_HELD]);
int loopback_up(void);
int allow_unprivileged_network(int64_t id_base, int64_t id_count);

/* ---- create.c: from clone to the loop of init ---- */

_Noreturn void become_init(const struct json *sandbox, int control);
void name_process(const char *name);

/* ---- failpoint.c ---- */

int failpoint(const char *name, struct failure *failure);

/* ---- launcher.c ---- */

#define MAX_INIT_TASKS 16

/* What the launcher was started with. */
struct launcher {
	int run; /* directory with launcher.sock */
	int listener;
	int lock; /* flock(2): there is one launcher of a node */
	int signals;
	int idle_ms;
	int init_cgroup; /* a cgroup2 directory, or -1 */
	int init_tasks[MAX_INIT_TASKS];
	size_t init_task_count;
	char *rlimits;    /* JSON, for who starts applications */
	char *failpoints; /* armed by tests */
	char *name;       /* what ps shows, and the room for it */
	size_t name_room;
};

extern struct launcher launcher;

struct client {
	int sock; /* -1: free */
	int poll;
};

_Noreturn void serve(void);
bool answer(struct client *client, const struct text *text, const int *fds, size_t fd_count);
void answer_failure(struct client *client, const struct failure *failure);
int watch(int fd);
bool due(int at);

/* ---- creation.c ---- */

#define MAX_PENDING 256

void create(struct client *client, const struct packet *packet, struct failure *failure);
void creations_begin(void);
void creations_watch(void);
void creations_turn(void);
void creations_expire(void);
void creations_give_up(const struct client *client);
size_t creations_pending(void);
void children_reap(void);
size_t children_alive(void);

#endif
