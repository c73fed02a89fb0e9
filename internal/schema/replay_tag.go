package schema

import pgq "github.com/pganalyze/pg_query_go/v6"

// commandTag is the tag of the event that a statement fires, "" when it fires none.
// server is the version number of the server that ran it.
func commandTag(node *pgq.Node, server int) string {
	switch n := node.GetNode().(type) {
	case *pgq.Node_AlterTableStmt:
		return alterTag(n.AlterTableStmt.Objtype)
	case *pgq.Node_AlterTableMoveAllStmt:
		return alterTag(n.AlterTableMoveAllStmt.Objtype)
	case *pgq.Node_RenameStmt:
		if n.RenameStmt.RenameType == pgq.ObjectType_OBJECT_COLUMN {
			return alterTag(n.RenameStmt.RelationType)
		}
		return alterTag(n.RenameStmt.RenameType)
	case *pgq.Node_AlterObjectSchemaStmt:
		return alterTag(n.AlterObjectSchemaStmt.ObjectType)
	case *pgq.Node_AlterObjectDependsStmt:
		return alterTag(n.AlterObjectDependsStmt.ObjectType)
	case *pgq.Node_AlterOwnerStmt:
		return alterTag(n.AlterOwnerStmt.ObjectType)
	case *pgq.Node_AlterFunctionStmt:
		return alterTag(n.AlterFunctionStmt.Objtype)
	case *pgq.Node_DropStmt:
		return namedTag("DROP ", n.DropStmt.RemoveType)
	case *pgq.Node_DefineStmt:
		return namedTag("CREATE ", n.DefineStmt.Kind)
	case *pgq.Node_GrantStmt:
		return grantTag(n.GrantStmt)
	case *pgq.Node_CommentStmt:
		return localTag("COMMENT", n.CommentStmt.Objtype)
	case *pgq.Node_SecLabelStmt:
		return localTag("SECURITY LABEL", n.SecLabelStmt.Objtype)
	case *pgq.Node_SelectStmt:
		if n.SelectStmt.IntoClause != nil {
			return "SELECT INTO"
		}
		return ""
	case *pgq.Node_CreateTableAsStmt:
		return createAsTag(n.CreateTableAsStmt)
	case *pgq.Node_CreateFunctionStmt:
		if n.CreateFunctionStmt.IsProcedure {
			return "CREATE PROCEDURE"
		}
		return "CREATE FUNCTION"
	case *pgq.Node_ReindexStmt:
		if server >= 170000 {
			return "REINDEX"
		}
		return ""
	}
	return plainTags[nodeName(node)]
}

// plainTags are the tags of the statements that have only one, by their node's name.
var plainTags = map[string]string{
	"alter_collation_stmt":          "ALTER COLLATION",
	"alter_default_privileges_stmt": "ALTER DEFAULT PRIVILEGES",
	"alter_domain_stmt":             "ALTER DOMAIN",
	"alter_enum_stmt":               "ALTER TYPE",
	"alter_extension_contents_stmt": "ALTER EXTENSION",
	"alter_extension_stmt":          "ALTER EXTENSION",
	"alter_fdw_stmt":                "ALTER FOREIGN DATA WRAPPER",
	"alter_foreign_server_stmt":     "ALTER SERVER",
	"alter_op_family_stmt":          "ALTER OPERATOR FAMILY",
	"alter_operator_stmt":           "ALTER OPERATOR",
	"alter_policy_stmt":             "ALTER POLICY",
	"alter_publication_stmt":        "ALTER PUBLICATION",
	"alter_seq_stmt":                "ALTER SEQUENCE",
	"alter_stats_stmt":              "ALTER STATISTICS",
	"alter_subscription_stmt":       "ALTER SUBSCRIPTION",
	"alter_tsconfiguration_stmt":    "ALTER TEXT SEARCH CONFIGURATION",
	"alter_tsdictionary_stmt":       "ALTER TEXT SEARCH DICTIONARY",
	"alter_type_stmt":               "ALTER TYPE",
	"alter_user_mapping_stmt":       "ALTER USER MAPPING",
	"composite_type_stmt":           "CREATE TYPE",
	"create_am_stmt":                "CREATE ACCESS METHOD",
	"create_cast_stmt":              "CREATE CAST",
	"create_conversion_stmt":        "CREATE CONVERSION",
	"create_domain_stmt":            "CREATE DOMAIN",
	"create_enum_stmt":              "CREATE TYPE",
	"create_extension_stmt":         "CREATE EXTENSION",
	"create_fdw_stmt":               "CREATE FOREIGN DATA WRAPPER",
	"create_foreign_server_stmt":    "CREATE SERVER",
	"create_foreign_table_stmt":     "CREATE FOREIGN TABLE",
	"create_op_class_stmt":          "CREATE OPERATOR CLASS",
	"create_op_family_stmt":         "CREATE OPERATOR FAMILY",
	"create_plang_stmt":             "CREATE LANGUAGE",
	"create_policy_stmt":            "CREATE POLICY",
	"create_publication_stmt":       "CREATE PUBLICATION",
	"create_range_stmt":             "CREATE TYPE",
	"create_schema_stmt":            "CREATE SCHEMA",
	"create_seq_stmt":               "CREATE SEQUENCE",
	"create_stats_stmt":             "CREATE STATISTICS",
	"create_stmt":                   "CREATE TABLE",
	"create_subscription_stmt":      "CREATE SUBSCRIPTION",
	"create_transform_stmt":         "CREATE TRANSFORM",
	"create_trig_stmt":              "CREATE TRIGGER",
	"create_user_mapping_stmt":      "CREATE USER MAPPING",
	"drop_owned_stmt":               "DROP OWNED",
	"drop_subscription_stmt":        "DROP SUBSCRIPTION",
	"drop_user_mapping_stmt":        "DROP USER MAPPING",
	"import_foreign_schema_stmt":    "IMPORT FOREIGN SCHEMA",
	"index_stmt":                    "CREATE INDEX",
	"reassign_owned_stmt":           "REASSIGN OWNED",
	"refresh_mat_view_stmt":         "REFRESH MATERIALIZED VIEW",
	"rule_stmt":                     "CREATE RULE",
	"view_stmt":                     "CREATE VIEW",
}

// nodeName is the name of the kind of node, as the grammar's protobuf has it.
func nodeName(node *pgq.Node) string {
	m := node.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("node")); f != nil {
		return string(f.Name())
	}
	return ""
}

func createAsTag(s *pgq.CreateTableAsStmt) string {
	switch {
	case s.Objtype == pgq.ObjectType_OBJECT_MATVIEW:
		return "CREATE MATERIALIZED VIEW"
	case s.IsSelectInto:
		return "SELECT INTO"
	}
	return "CREATE TABLE AS"
}

func grantTag(s *pgq.GrantStmt) string {
	if s.IsGrant {
		return localTag("GRANT", s.Objtype)
	}
	return localTag("REVOKE", s.Objtype)
}

// localTag is tag, and "" for an object of the whole cluster: those fire no event.
func localTag(tag string, t pgq.ObjectType) string {
	switch t {
	case pgq.ObjectType_OBJECT_DATABASE, pgq.ObjectType_OBJECT_TABLESPACE, pgq.ObjectType_OBJECT_ROLE,
		pgq.ObjectType_OBJECT_PARAMETER_ACL, pgq.ObjectType_OBJECT_EVENT_TRIGGER:
		return ""
	}
	return tag
}

func alterTag(t pgq.ObjectType) string {
	switch t {
	case pgq.ObjectType_OBJECT_TABCONSTRAINT, pgq.ObjectType_OBJECT_COLUMN:
		t = pgq.ObjectType_OBJECT_TABLE
	case pgq.ObjectType_OBJECT_DOMCONSTRAINT:
		t = pgq.ObjectType_OBJECT_DOMAIN
	case pgq.ObjectType_OBJECT_ATTRIBUTE:
		t = pgq.ObjectType_OBJECT_TYPE
	}
	return namedTag("ALTER ", t)
}

func namedTag(verb string, t pgq.ObjectType) string {
	if name := objectNames[t]; name != "" && localTag(name, t) != "" {
		return verb + name
	}
	return ""
}

var objectNames = map[pgq.ObjectType]string{
	pgq.ObjectType_OBJECT_ACCESS_METHOD:   "ACCESS METHOD",
	pgq.ObjectType_OBJECT_AGGREGATE:       "AGGREGATE",
	pgq.ObjectType_OBJECT_CAST:            "CAST",
	pgq.ObjectType_OBJECT_COLLATION:       "COLLATION",
	pgq.ObjectType_OBJECT_CONVERSION:      "CONVERSION",
	pgq.ObjectType_OBJECT_DOMAIN:          "DOMAIN",
	pgq.ObjectType_OBJECT_EXTENSION:       "EXTENSION",
	pgq.ObjectType_OBJECT_FDW:             "FOREIGN DATA WRAPPER",
	pgq.ObjectType_OBJECT_FOREIGN_SERVER:  "SERVER",
	pgq.ObjectType_OBJECT_FOREIGN_TABLE:   "FOREIGN TABLE",
	pgq.ObjectType_OBJECT_FUNCTION:        "FUNCTION",
	pgq.ObjectType_OBJECT_INDEX:           "INDEX",
	pgq.ObjectType_OBJECT_LANGUAGE:        "LANGUAGE",
	pgq.ObjectType_OBJECT_LARGEOBJECT:     "LARGE OBJECT",
	pgq.ObjectType_OBJECT_MATVIEW:         "MATERIALIZED VIEW",
	pgq.ObjectType_OBJECT_OPCLASS:         "OPERATOR CLASS",
	pgq.ObjectType_OBJECT_OPERATOR:        "OPERATOR",
	pgq.ObjectType_OBJECT_OPFAMILY:        "OPERATOR FAMILY",
	pgq.ObjectType_OBJECT_POLICY:          "POLICY",
	pgq.ObjectType_OBJECT_PROCEDURE:       "PROCEDURE",
	pgq.ObjectType_OBJECT_PUBLICATION:     "PUBLICATION",
	pgq.ObjectType_OBJECT_ROUTINE:         "ROUTINE",
	pgq.ObjectType_OBJECT_RULE:            "RULE",
	pgq.ObjectType_OBJECT_SCHEMA:          "SCHEMA",
	pgq.ObjectType_OBJECT_SEQUENCE:        "SEQUENCE",
	pgq.ObjectType_OBJECT_STATISTIC_EXT:   "STATISTICS",
	pgq.ObjectType_OBJECT_SUBSCRIPTION:    "SUBSCRIPTION",
	pgq.ObjectType_OBJECT_TABLE:           "TABLE",
	pgq.ObjectType_OBJECT_TRANSFORM:       "TRANSFORM",
	pgq.ObjectType_OBJECT_TRIGGER:         "TRIGGER",
	pgq.ObjectType_OBJECT_TSCONFIGURATION: "TEXT SEARCH CONFIGURATION",
	pgq.ObjectType_OBJECT_TSDICTIONARY:    "TEXT SEARCH DICTIONARY",
	pgq.ObjectType_OBJECT_TSPARSER:        "TEXT SEARCH PARSER",
	pgq.ObjectType_OBJECT_TSTEMPLATE:      "TEXT SEARCH TEMPLATE",
	pgq.ObjectType_OBJECT_TYPE:            "TYPE",
	pgq.ObjectType_OBJECT_USER_MAPPING:    "USER MAPPING",
	pgq.ObjectType_OBJECT_VIEW:            "VIEW",
}
