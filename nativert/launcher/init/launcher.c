/*
 * The launcher's loop: clients and their verbs. What is created is in creation.c.
 *
 * Without instances and clients the launcher leaves after some seconds. It may die at any time:
 * inits go on at their own sockets.
 */
#include "launcher.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOCKET_NAME "launcher.sock"
/* Root alone may connect; this is against a client that goes wrong. */
#define MAX_CLIENTS 1024
#define EXPIRE_MS 1000

struct launcher launcher;

static struct client clients[MAX_CLIENTS];
static size_t client_end; /* no client at or beyond it */
static struct pollfd polled[2 + MAX_CLIENTS + MAX_PENDING];
static int count;

/* ---- clients ---- */

static void drop(struct client *client)
{
	if (client->sock < 0)
		return;
	close_fd(&client->sock);
	while (client_end && clients[client_end - 1].sock < 0)
		client_end--;
	creations_give_up(client);
}

/* Send *text*; false if the client is gone, or does not read. */
bool answer(struct client *client, const struct text *text, const int *fds, size_t fd_count)
{
	if (client->sock >= 0 && !packet_send(client->sock, text, fds, fd_count))
		return true;
	drop(client);
	return false;
}

void answer_failure(struct client *client, const struct failure *failure)
{
	text_open(&outgoing);
	put_failure(&outgoing, failure);
	text_close(&outgoing);
	answer(client, &outgoing, NULL, 0);
}

static void accept_one(void)
{
	int sock = accept4(launcher.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	size_t i = 0;

	if (sock < 0)
		return; /* No descriptor is left: whoever waits is served later. */
	while (i < client_end && clients[i].sock >= 0)
		i++;
	if (i == MAX_CLIENTS) {
		close(sock);
		return;
	}
	if (i == client_end)
		client_end++;
	clients[i] = (struct client){.sock = sock, .poll = -1};
}

/* ---- verbs ---- */

static void hello(struct client *client)
{
	text_open(&outgoing);
	put_hello(&outgoing);
	put_raw(&outgoing, "rlimits", launcher.rlimits);
	text_close(&outgoing);
	answer(client, &outgoing, NULL, 0);
}

static void leave(struct client *client, struct failure *failure)
{
	static char text[64];

	if (children_alive()) {
		snprintf(text, sizeof(text), "%zu instances are alive", children_alive());
		fail(failure, EBUSY, NULL, text);
		return;
	}
	unlinkat(launcher.run, SOCKET_NAME, 0);
	text_open(&outgoing);
	put_bool(&outgoing, "ok", true);
	text_close(&outgoing);
	answer(client, &outgoing, NULL, 0);
	_exit(0);
}

static void receive(struct client *client)
{
	struct packet packet;
	enum received received = packet_receive(client->sock, &packet);
	const char *name;
	struct failure failure = {.step = "verb"};

	if (received == RECEIVED_GONE)
		drop(client);
	if (received != RECEIVED_MESSAGE)
		return;
	name = json_text(packet.message, "verb");
	if (name && !strcmp(name, "create"))
		create(client, &packet, (failure.step = name, &failure));
	else if (name && !strcmp(name, "hello"))
		hello(client);
	else if (name && !strcmp(name, "leave"))
		leave(client, (failure.step = name, &failure));
	else
		fail(&failure, 0, NULL, "unknown verb");
	if (failure.text)
		answer_failure(client, &failure);
	packet_free(&packet);
}

/* ---- the loop ---- */

int watch(int fd)
{
	polled[count] = (struct pollfd){.fd = fd, .events = POLLIN};
	return count++;
}

bool due(int at)
{
	return at >= 0 && polled[at].revents;
}

static void prepare(void)
{
	count = 0;
	watch(launcher.signals);
	watch(launcher.listener);
	creations_watch();
	for (size_t i = 0; i < client_end; i++)
		clients[i].poll = clients[i].sock >= 0 ? watch(clients[i].sock) : -1;
}

static void turn(void)
{
	if (due(0))
		children_reap();
	creations_turn();
	for (size_t i = 0; i < client_end; i++)
		if (clients[i].sock >= 0 && due(clients[i].poll))
			receive(&clients[i]);
	/* Last, so that no place of a client is used again within one turn. */
	if (due(1))
		accept_one();
	creations_expire();
}

/* Serve until there has been nothing to do for a while. */
_Noreturn void serve(void)
{
	creations_begin();
	for (;;) {
		bool busy = client_end || children_alive();
		int got;

		prepare();
		got = poll(polled, (nfds_t)count,
			   creations_pending() ? EXPIRE_MS : busy ? -1 : launcher.idle_ms);
		if (!got && !busy) {
			/* Unlinked before the listener closes: who finds none starts another. */
			unlinkat(launcher.run, SOCKET_NAME, 0);
			_exit(0);
		}
		if (got >= 0)
			turn();
	}
}
