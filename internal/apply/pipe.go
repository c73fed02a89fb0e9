package apply

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// pipe speaks the extended query protocol ahead of its answers. pgx's own pipeline has
// no COPY in it, though the server takes one: rows may follow their command unasked, and
// are dropped where that failed ("COPY Operations" in the chapter Message Flow of
// PostgreSQL's documentation).
//
// The connection is used by nobody else from the first request until sync was answered.
// Nobody reads while a write waits, so the writer must keep what is under way below what
// the connection takes without the server's help.
type pipe struct {
	conn  *pgconn.PgConn
	front *pgproto3.Frontend
	args  pgproto3.Bind // for reuse
}

func newPipe(conn *pgconn.PgConn) *pipe { return &pipe{conn: conn, front: conn.Frontend()} }

func (p *pipe) parse(name, sql string, oids []uint32) {
	p.front.SendParse(&pgproto3.Parse{Name: name, Query: sql, ParameterOIDs: oids})
}

func (p *pipe) forget(name string) {
	p.front.SendClose(&pgproto3.Close{ObjectType: 'S', Name: name})
}

// execute runs a prepared statement with its values in text form.
func (p *pipe) execute(name string, values [][]byte) {
	p.args.PreparedStatement, p.args.Parameters = name, values
	p.front.SendBind(&p.args)
	p.front.SendExecute(&pgproto3.Execute{})
}

// copy runs a prepared COPY FROM STDIN with its rows.
func (p *pipe) copy(name string, rows []byte) {
	p.execute(name, nil)
	p.front.Send(&pgproto3.CopyData{Data: rows})
	p.front.Send(&pgproto3.CopyDone{})
}

// flush hands over what was asked for. The server answers when its buffer is full, or
// when it is told to.
func (p *pipe) flush() error {
	p.front.Send(&pgproto3.Flush{})
	return p.front.Flush()
}

// sync ends what was asked for; the server answers all of it, and that it is ready.
func (p *pipe) sync() error {
	p.front.SendSync(&pgproto3.Sync{})
	return p.front.Flush()
}

// receive returns the next answer; an error of the server is an error here. It is valid
// until the next call.
func (p *pipe) receive() (pgproto3.BackendMessage, error) {
	for {
		msg, err := p.conn.ReceiveMessage(context.Background())
		if err != nil {
			return nil, err
		}
		switch m := msg.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus, *pgproto3.NotificationResponse:
			continue
		}
		return msg, nil
	}
}

// ready reads the answer to sync.
func (p *pipe) ready() error {
	msg, err := p.receive()
	if _, ok := msg.(*pgproto3.ReadyForQuery); err == nil && !ok {
		err = unexpected(msg)
	}
	return err
}

// prepared reads the answer to parse or forget.
func (p *pipe) prepared() error {
	msg, err := p.receive()
	if err != nil {
		return err
	}
	switch msg.(type) {
	case *pgproto3.ParseComplete, *pgproto3.CloseComplete:
		return nil
	}
	return unexpected(msg)
}

// result reads the answer to execute or copy. row may be nil.
func (p *pipe) result(row func(values [][]byte) error) (pgconn.CommandTag, error) {
	for {
		msg, err := p.receive()
		if err != nil {
			return pgconn.CommandTag{}, err
		}
		switch m := msg.(type) {
		case *pgproto3.BindComplete, *pgproto3.CopyInResponse:
		case *pgproto3.DataRow:
			if row != nil {
				if err := row(m.Values); err != nil {
					return pgconn.CommandTag{}, err
				}
			}
		case *pgproto3.CommandComplete:
			return pgconn.NewCommandTag(string(m.CommandTag)), nil
		default:
			return pgconn.CommandTag{}, unexpected(msg)
		}
	}
}

func unexpected(msg pgproto3.BackendMessage) error {
	return fmt.Errorf("unexpected answer %T of the server", msg)
}
